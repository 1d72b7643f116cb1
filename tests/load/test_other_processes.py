"""Who is a neighbour, and what a share of the processors is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import psutil
import pytest

from pytest_speedbench.load import other_processes
from pytest_speedbench.load.other_processes import OtherProcesses

COMPUTES = "while True: pass"
WORK_S = 0.3
"""Processor time that is waited for; systems count it in steps of 10 ms."""


def own_s() -> float:
    return other_processes._clocks_s()[2]


def computed(process: psutil.Process) -> None:
    """Return when a process has computed for so long."""
    enough_s = sum(process.cpu_times()[:2]) + WORK_S
    while sum(process.cpu_times()[:2]) < enough_s:
        pass


@pytest.fixture
def child() -> Iterator[psutil.Process]:
    with subprocess.Popen([sys.executable, "-c", COMPUTES]) as process:
        yield psutil.Process(process.pid)
        process.kill()


@pytest.fixture
def stranger() -> Iterator[psutil.Process]:
    """Computes, and belongs to nobody here: its parent is gone."""
    starts = (
        "import subprocess, sys; "
        f"print(subprocess.Popen([sys.executable, '-c', '{COMPUTES}'], stdout=subprocess.DEVNULL).pid)"
    )
    said = subprocess.run([sys.executable, "-c", starts], stdout=subprocess.PIPE, check=True, text=True)
    process = psutil.Process(int(said.stdout))
    yield process
    process.kill()


def test_a_child_is_no_neighbour(child: psutil.Process) -> None:
    before_s = own_s()
    computed(child)
    assert own_s() - before_s >= WORK_S


def test_a_child_that_ended_was_none(child: psutil.Process) -> None:
    before_s = own_s()
    computed(child)
    child.kill()
    child.wait()
    assert own_s() - before_s >= WORK_S - 0.02


def test_a_stranger_is_one(stranger: psutil.Process) -> None:
    with OtherProcesses() as found:
        computed(stranger)
    assert 0 < found.share <= 1


@pytest.mark.parametrize(
    ("after", "share"),
    [
        ((108.0, 56.0, 11.0), 0.625),  # of 8 seconds of processors 6 were used, 1 of them by us
        ((108.0, 51.0, 12.0), 0.0),  # clocks tick apart from each other
        ((108.0, 60.0, 10.0), 1.0),
        ((100.0, 50.0, 10.0), 0.0),
    ],
)
def test_the_share_is_of_all_processors(
    monkeypatch: pytest.MonkeyPatch, after: tuple[float, float, float], share: float
) -> None:
    clocks: Callable[[], tuple[float, float, float]] = iter([(100.0, 50.0, 10.0), after]).__next__
    monkeypatch.setattr(other_processes, "_clocks_s", clocks)
    with OtherProcesses() as found:
        pass
    assert found.share == pytest.approx(share)
