"""What the NVIDIA driver reports, with a stand-in for `pynvml`: it cannot be had without a GPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_speedbench.engines.launch.nvidia_driver import HeldDown, NvidiaDriver

ONE, TWO = "GPU-aaaa-1", "GPU-bbbb-2"


class Nvml(SimpleNamespace):
    """Stands in for `pynvml`: two cards, of which the first does not count its board limit."""

    class NVMLError(Exception):
        pass

    NVML_PERF_POLICY_POWER = 0
    NVML_PERF_POLICY_THERMAL = 1
    NVML_PERF_POLICY_BOARD_LIMIT = 3

    def __init__(self) -> None:
        super().__init__()
        self.held_ns = {(ONE, 0): 0, (ONE, 1): 0, (TWO, 0): 0, (TWO, 1): 0, (TWO, 3): 0}
        self.has_driver = True

    def nvmlInit(self) -> None:
        if not self.has_driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.65.06"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if (uuid, 0) not in self.held_ns:
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetViolationStatus(self, handle: str, policy: int) -> Any:
        if (handle, policy) not in self.held_ns:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(referenceTime=0, violationTime=self.held_ns[handle, policy])


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    stand_in = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", stand_in)
    return stand_in


def test_each_card_and_limit_is_read_in_seconds(nvml: Nvml) -> None:
    driver = NvidiaDriver([ONE, TWO])
    nvml.held_ns[TWO, 3] = 2_500_000_000
    assert driver.version == "580.65.06"
    assert driver.held_down().held_s == {
        (0, "power"): 0.0,
        (0, "thermal"): 0.0,
        (1, "power"): 0.0,
        (1, "thermal"): 0.0,
        (1, "board"): 2.5,
    }


def test_shares_are_of_the_card_that_was_held_down_longest() -> None:
    before = HeldDown(100.0, {(0, "power"): 7.0, (1, "power"): 1.0, (1, "thermal"): 3.0})
    after = HeldDown(110.0, {(0, "power"): 8.0, (1, "power"): 5.0, (1, "thermal"): 3.0, (1, "board"): 9.0})
    assert after.shares_since(before) == {"power": 0.4, "thermal": 0.0}, "the board was not read before"


def test_a_share_is_at_most_one() -> None:
    """The driver counts in steps of its own, which may be longer than a round."""
    assert HeldDown(1.0, {(0, "power"): 5.0}).shares_since(HeldDown(0.0, {(0, "power"): 0.0})) == {
        "power": 1.0
    }


@pytest.mark.parametrize("cards", [(), ("GPU-gone",)])
def test_without_a_card_nothing_is_known(nvml: Nvml, cards: tuple[str, ...]) -> None:
    assert NvidiaDriver(cards).held_down().held_s == {}


def test_without_a_driver_nothing_is_known(nvml: Nvml) -> None:
    nvml.has_driver = False
    driver = NvidiaDriver([ONE])
    assert (driver.version, driver.held_down().held_s) == (None, {})


def test_without_the_package_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    driver = NvidiaDriver([ONE])
    assert (driver.version, driver.held_down().held_s) == (None, {})


def test_the_stand_in_is_like_the_package() -> None:
    pynvml = pytest.importorskip("pynvml")
    for name, stand_in in vars(Nvml).items():
        if name.startswith("nvml"):
            assert callable(getattr(pynvml, name))
        elif name.startswith("NVML_"):
            assert getattr(pynvml, name) == stand_in
    assert issubclass(pynvml.NVMLError, Exception)
    assert {field for field, _ in pynvml.c_nvmlViolationTime_t._fields_} == {"referenceTime", "violationTime"}
