"""With pytest-rerunfailures: what could not be measured is measured again, what was judged is not, and saves are whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_speedbench.errors import EngineError
from pytest_speedbench.run.target_run import TargetRun
from tests.integration.conftest import Run

pytest.importorskip("pytest_rerunfailures")
BASELINE = Path("baselines", "reference-draft_model-k3.yaml")
RERUN = ("-p", "rerunfailures", "--reruns=1")


@pytest.fixture
def fails_once(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The first round of the run fails, as after a fault of the network; the cells that were measured, in order."""
    measured: list[str] = []
    measure = TargetRun.measure

    def flaky(self: TargetRun, cell, plan, number):  # type: ignore[no-untyped-def]
        measured.append(cell.category)
        if len(measured) == 1:
            raise EngineError("GET /metrics failed: connection reset")
        return measure(self, cell, plan, number)

    monkeypatch.setattr(TargetRun, "measure", flaky)
    return measured


def test_what_could_not_be_measured_is_measured_again_and_saved(
    pytester: pytest.Pytester, run: Run, fails_once: list[str]
) -> None:
    result = run(*RERUN, "--speedbench-save")
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] == 3
    assert outcomes["rerun"] >= 1
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["saved 2 cells*"])
    assert (pytester.path / BASELINE).exists()


def test_what_was_judged_is_not_measured_again(saved: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    measure = TargetRun.measure

    def counted(self: TargetRun, cell, plan, number):  # type: ignore[no-untyped-def]
        measured.append(cell.category)
        return measure(self, cell, plan, number)

    monkeypatch.setattr(TargetRun, "measure", counted)
    result = saved(*RERUN, "--speedbench-engine-arg=--draft-quality=0.8")
    outcomes = result.parseoutcomes()
    assert (outcomes["failed"], outcomes["rerun"]) == (3, 3)
    assert measured == ["coding", "qa"]


def test_without_a_rerun_the_run_may_be_repeated(run: Run, fails_once: list[str]) -> None:
    result = run("-p", "no:rerunfailures", "-k", "coding")
    result.assert_outcomes(errors=1)
    assert result.ret == 75
