"""What is asked of every real engine: save, pass again, fail with a worse drafter, refuse a dead one, leave nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from tests.real.install import Environment

OUTPUT_LENGTH = 64
DRAFT_LENGTH = 3
GONE_S = 15.0
"""How long an engine may outlive the pytest that launched it."""
_BUSY_S = 180.0


@dataclass(frozen=True)
class Run:
    """What a pytest run left behind."""

    result: pytest.RunResult
    cells: dict[str, dict[str, Any]]
    """Of the results, by id."""

    def metric(self, name: str) -> dict[str, float]:
        return {cell_id: cell["metrics"][name] for cell_id, cell in self.cells.items()}

    def verdicts(self) -> list[str]:
        return [cell["verdicts"]["acceptance_length"]["verdict"] for cell in self.cells.values()]


def set_variables(monkeypatch: pytest.MonkeyPatch, environment: Environment) -> None:
    """What the engine's processes need, in the environment of the test that starts them."""
    for name, value in environment.variables.items():
        monkeypatch.setenv(name, value, prepend=os.pathsep if name == "PYTHONPATH" else None)


@dataclass(frozen=True)
class Gate:
    """Runs the suite's acceptance tests on the bundled prompts, from an empty folder."""

    pytester: pytest.Pytester
    engine: str
    environment: Environment
    engine_args: tuple[str, ...]

    def launched(self, model: str, method: str, *arguments: str) -> Run:
        """On a server that the plugin launches."""
        return self._run(self._command(model, method, *self._to_launch(), *arguments))

    def attached(self, url: str, model: str, method: str, *arguments: str) -> Run:
        """On a server that runs already."""
        return self._run(self._command(model, method, f"--speedbench-url={url}", *arguments))

    def started(self, model: str, method: str, *arguments: str) -> subprocess.Popen[bytes]:
        """As `launched`, without waiting for its end."""
        command = self._command(model, method, *self._to_launch(), *arguments)
        with (self.pytester.path / "output.txt").open("w") as output:
            process: subprocess.Popen[bytes] = self.pytester.popen(
                [sys.executable, "-m", "pytest", *command], stdout=output, stderr=output
            )
        return process

    def drafter(self, name: str) -> str:
        """The option that names one of the tiny models."""
        return f"--speedbench-draft-model={self.environment.models / name}"

    def _to_launch(self) -> tuple[str, ...]:
        engine_args = (f"--speedbench-engine-arg={arg}" for arg in self.engine_args)
        return (f"--speedbench-engine-python={self.environment.python}", *engine_args)

    def _command(self, model: str, method: str, *arguments: str) -> tuple[str, ...]:
        return (
            *("-p", "no:cacheprovider", "--pyargs", "pytest_speedbench.suite", "-k", "acceptance"),
            f"--speedbench-engine={self.engine}",
            f"--speedbench-model={self.environment.models / model}",
            f"--speedbench-method={method}",
            f"--speedbench-draft-length={DRAFT_LENGTH}",
            f"--speedbench-output-length={OUTPUT_LENGTH}",
            "--speedbench-ignore-eos",
            f"--speedbench-json={self.pytester.path / 'results.json'}",
            *arguments,
        )

    def _run(self, command: Sequence[str]) -> Run:
        results = self.pytester.path / "results.json"
        results.unlink(missing_ok=True)
        result = self.pytester.runpytest_subprocess(*command)
        document = json.loads(results.read_text()) if results.exists() else {"cells": []}
        return Run(result, {cell["id"]: cell for cell in document["cells"]})


RunAs = Callable[..., Run]
"""Takes further arguments of the command line."""


def gates_the_drafter(as_it_is: RunAs, made_worse: RunAs, cells: int) -> Run:
    """Saves a baseline, passes against it, and fails when the drafter is worse; returns the run that saved.

    Args:
        as_it_is: measures `cells` cells.
        made_worse: measures some of these cells with a worse drafter.
        cells: how many.
    """
    saved = as_it_is("--speedbench-save")
    saved.result.assert_outcomes(passed=cells)
    saved.result.stdout.fnmatch_lines([f"saved {cells} cell*to baselines/*"])
    assert len(saved.cells) == cells
    for cell in saved.cells.values():
        assert cell["problems"] == []
        assert (cell["counter_source"], cell["tokenization"]) == ("response", "engine")
        assert 1.02 < cell["metrics"]["acceptance_length"] <= 1 + DRAFT_LENGTH

    again = as_it_is()
    again.result.assert_outcomes(passed=cells)
    assert set(again.verdicts()) == {"pass"}
    for metric in ("acceptance_length", "drafted_acceptance_length"):
        assert again.metric(metric) == pytest.approx(saved.metric(metric), abs=0.5e-4)

    worse = made_worse()
    assert worse.cells
    worse.result.assert_outcomes(failed=len(worse.cells))
    assert set(worse.verdicts()) == {"regression"}
    worse.result.stdout.fnmatch_lines(["*acceptance_length * -> *", "*REGRESSION*", "*cause: drafter*"])
    return saved


def refuses_a_dead_drafter(gate: Gate, saving: Run) -> None:
    """Fails and writes nothing, though everything else about the run is in order.

    Args:
        gate: that ran it.
        saving: a run with `--speedbench-save`, of one cell, with a drafter that never guesses right.
    """
    saving.result.assert_outcomes(failed=1)
    saving.result.stdout.fnmatch_lines(["*dead drafter*", "*nothing was saved*"])
    assert list(saving.metric("acceptance_length").values()) == [pytest.approx(1, abs=0.02)]
    assert [cell["problems"] for cell in saving.cells.values()] == [[]]
    assert not (gate.pytester.path / "baselines").exists()


def leaves_nothing_behind(run: subprocess.Popen[bytes], batch_size: int) -> None:
    """Kills a pytest once its engine is at work on a whole batch; nothing that it started may outlive it for long.

    Args:
        run: pytest, just started, with enough to do for minutes.
        batch_size: requests that it keeps in flight.
    """
    pytest_process = psutil.Process(run.pid)
    try:
        give_up = time.monotonic() + _BUSY_S
        while _requests_in_flight(pytest_process) < batch_size:
            assert run.poll() is None, "pytest ended before it had sent its requests"
            assert time.monotonic() < give_up, "pytest did not get to send its requests"
            time.sleep(0.1)
        started = pytest_process.children(recursive=True)
        assert len(started) >= 2, "there was to be a supervisor and an engine"
    finally:
        run.kill()
        run.wait()
    _, left = psutil.wait_procs(started, timeout=GONE_S)
    names = [process.as_dict(["pid", "name"]) for process in left if not _is_zombie(process)]
    assert names == []


def _requests_in_flight(process: psutil.Process) -> int:
    connections = process.net_connections(kind="tcp")
    return sum(connection.status == psutil.CONN_ESTABLISHED for connection in connections)


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
