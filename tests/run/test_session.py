"""A session's book-keeping: whose time it was, which tests failed, and the exit status that follows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pytest_speedbench.cells import Cell, Plan
from pytest_speedbench.metrics.one_round import MeasuredRound
from pytest_speedbench.run import session as session_module
from pytest_speedbench.run.session import EX_TEMPFAIL, Session
from tests.run.diary import Recorder, measured_round, settings

CODING, MATH = (Cell("qualitative", category, 4) for category in ("coding", "math"))
FIRST, SECOND = "test_gate.py::test[coding]", "test_gate.py::test[math]"


class Slow(Recorder):
    """Takes a while, which is another one for each category."""

    seconds: Mapping[str, float] = {"coding": 0.02, "math": 0.05}

    def measure(self, cell: Cell, plan: Plan, number: int) -> MeasuredRound:
        time.sleep(self.seconds[cell.category])
        return super().measure(cell, plan, number)


@pytest.fixture
def recorder() -> Slow:
    return Slow("A", [])


@pytest.fixture
def session(tmp_path: Path, recorder: Slow, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """Two cells, each of which a test asks for; nothing is launched."""
    monkeypatch.setattr(session_module, "TargetRun", lambda *_: recorder)
    config = SimpleNamespace(
        rootpath=tmp_path, get_verbosity=lambda: 0, invocation_params=SimpleNamespace(args=())
    )
    one_round = settings(rounds="1", max_rounds="1", baselines=str(tmp_path))
    session = Session(one_round, cast(pytest.Config, config))
    session.prepare({CODING: Plan(), MATH: Plan()})
    yield session
    session.close()


class TestTime:
    def test_what_a_test_measured_for_others_is_theirs(self, session: Session) -> None:
        session.measure(CODING, FIRST)
        for_others_s = session.others_s(FIRST)
        assert for_others_s == pytest.approx(session.cell_run(MATH).measuring_s, abs=0.01)
        assert session.cell_run(CODING).measuring_s >= 0.02
        session.measure(MATH, SECOND)
        assert session.others_s(SECOND) == pytest.approx(-for_others_s), "no second is lost or counted twice"

    def test_it_is_read_once(self, session: Session) -> None:
        session.measure(CODING, FIRST)
        assert session.others_s(FIRST) > 0
        assert session.others_s(FIRST) == 0
        assert session.others_s("test_other.py::test") == 0


class TestExitStatus:
    @pytest.mark.parametrize(
        ("status", "failures", "unwritten", "expected"),
        [
            (0, {}, False, 0),
            (0, {}, True, 1),
            (1, {FIRST: [True]}, False, EX_TEMPFAIL),
            (1, {FIRST: [True], SECOND: [True]}, False, EX_TEMPFAIL),
            (1, {FIRST: [True], SECOND: [False]}, False, 1),
            (1, {FIRST: [False, True]}, False, 1),
            (1, {FIRST: [True, False]}, False, 1),
            (1, {FIRST: [True]}, True, 1),
            (1, {}, False, 1),
            (2, {FIRST: [True]}, False, 2),
            (5, {}, False, 5),
        ],
        ids=[
            "all passed",
            "a report could not be written",
            "one not measured",
            "none measured",
            "a check failed too",
            "a check failed, then it was not measured",
            "not measured, then a check failed",
            "not measured, nor a report written",
            "what failed is not ours",
            "interrupted",
            "no tests",
        ],
    )
    def test_it_says_whether_it_is_safe_to_try_again(
        self,
        session: Session,
        status: int,
        failures: Mapping[str, list[bool]],
        unwritten: bool,
        expected: int,
    ) -> None:
        for test, attempts in failures.items():
            for not_measured in attempts:
                session.note_failure(test, None, "text", not_measured=not_measured)
        session.note_written("results.json", failed=unwritten)
        assert session.exit_status(status) == expected

    def test_a_test_that_passes_on_rerun_has_not_failed(self, session: Session) -> None:
        session.note_failure(FIRST, None, "a check failed", not_measured=False)
        session.note_failure(SECOND, None, "it was not measured", not_measured=True)
        session.forget_failure(FIRST, None)
        assert session.exit_status(1) == EX_TEMPFAIL
        assert session.result().failures == {SECOND: "it was not measured"}


class TestFailures:
    def test_a_failure_lies_with_the_cell_that_its_test_gates(self, session: Session) -> None:
        session.note_failure(FIRST, CODING, "text", not_measured=False)
        session.note_failure("test_other.py::test", None, "no cell", not_measured=False)
        session.note_failure(
            "test_old.py::test", Cell("qualitative", "qa", 4), "not planned", not_measured=True
        )
        assert session.cell_run(CODING).failures == {FIRST: "text"}
        result = session.result()
        assert result.failures == {"test_other.py::test": "no cell", "test_old.py::test": "not planned"}
        assert result.not_measured_tests == ("test_old.py::test",)

    def test_one_that_is_forgotten_leaves_those_of_other_tests(self, session: Session) -> None:
        for test in (FIRST, SECOND):
            session.note_failure(test, CODING, f"text of {test}", not_measured=False)
        session.forget_failure(FIRST, CODING)
        assert session.cell_run(CODING).failures == {SECOND: f"text of {SECOND}"}
        assert session.result().failed_tests == (SECOND,)


class TestMeasuringAgain:
    def test_a_test_that_found_its_cell_invalid_has_it_measured_anew(
        self, session: Session, recorder: Slow
    ) -> None:
        recorder.faults = [measured_round(problem="1 request failed")]
        assert session.measure(CODING, FIRST).measurement is not None
        del recorder.diary[:]
        session.measure(CODING, SECOND)
        assert recorder.diary == [], "another test is shown what there is"
        again = session.measure(CODING, FIRST).measurement
        assert again is not None and again.problems == ()
        assert recorder.diary == ["retry A", "A coding4"]

    def test_a_sound_cell_is_measured_once(self, session: Session, recorder: Slow) -> None:
        for _ in range(2):
            session.measure(CODING, FIRST)
        assert recorder.diary == ["start A", "A coding4", "A math4"]
