"""What a test does about its checks, and what its failure has to explain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_speedbench.cells import Cell
from pytest_speedbench.gate.check import Check, Verdict
from pytest_speedbench.run.outcome import explanations, outcome_of
from tests.report.samples import DRAFTER, check, measurement
from tests.run.cell_runs import cell_run


@pytest.mark.parametrize(
    ("verdict", "inconclusive", "saving", "what"),
    [
        (Verdict.PASS, "warn", False, ""),
        (Verdict.IMPROVEMENT, "warn", False, "notable"),
        (Verdict.REGRESSION, "warn", False, "failing"),
        (Verdict.INCONCLUSIVE, "warn", False, "notable"),
        (Verdict.INCONCLUSIVE, "fail", False, "failing"),
        (Verdict.INCOMPARABLE, "warn", False, "failing"),
        (Verdict.NO_BASELINE, "warn", False, "failing"),
        (Verdict.INVALID, "warn", False, "failing"),
        (Verdict.REGRESSION, "fail", True, ""),
        (Verdict.NO_BASELINE, "fail", True, ""),
        (Verdict.INVALID, "fail", True, "failing"),
    ],
)
def test_what_a_test_does_about_a_verdict(
    verdict: Verdict, inconclusive: str, saving: bool, what: str
) -> None:
    outcome = outcome_of([check(verdict)], inconclusive=inconclusive, incomparable="skip", saving=saving)
    assert [name for name in ("failing", "skipping", "notable") if getattr(outcome, name)] == [what] * bool(
        what
    )


def test_other_hardware_skips() -> None:
    outcome = outcome_of(
        [check(Verdict.INCOMPARABLE, across_machines=True)],
        inconclusive="fail",
        incomparable="skip",
        saving=False,
    )
    assert outcome.skipping and not outcome.failing


REGRESSION = check(differs=("engine_version 0.31.0 -> 0.32.0",))
INVALID = Check("acceptance_length", Verdict.INVALID, 0.03, 0.001, reasons=("1 request failed",))


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (("coding", 1, REGRESSION, "drafter"), ("qa", 1, REGRESSION, "drafter"), True),
        (("coding", 1, REGRESSION, "drafter"), ("qa", 8, REGRESSION, "drafter"), False),
        (("coding", 1, REGRESSION, "drafter"), ("qa", 1, REGRESSION, "system"), False),
        (("coding", 1, INVALID, None), ("qa", 8, INVALID, None), True),
        (
            ("coding", 1, INVALID, None),
            ("qa", 1, replace(INVALID, reasons=("2 requests failed",)), None),
            False,
        ),
        (
            ("coding", 1, INVALID, None),
            ("qa", 1, replace(INVALID, verdict=Verdict.INCOMPARABLE), None),
            False,
        ),
    ],
)
def test_which_failures_have_their_reason_in_common(
    one: tuple[str, int, Check, str | None], other: tuple[str, int, Check, str | None], alike: bool
) -> None:
    found = []
    for category, batch_size, failed, word in (one, other):
        cause = None if word is None else replace(DRAFTER, word=word)
        known = cell_run(measurement(Cell("qualitative", category, batch_size)), (failed,), cause)
        found.append(explanations(known, (failed,))[0])
    assert (found[0] == found[1]) is alike


def test_a_reason_that_names_its_cell_is_the_same_reason() -> None:
    def missing(category: str) -> tuple[object, ...]:
        cell = Cell("qualitative", category, 1)
        failed = replace(
            INVALID, verdict=Verdict.NO_BASELINE, reasons=(f"the baseline of t has no {cell.id}",)
        )
        return explanations(cell_run(measurement(cell), (failed,)), (failed,))

    assert missing("coding") == missing("qa")


def test_a_failure_explains_the_cause_the_advice_what_differs_and_how_to_store_it() -> None:
    known = cell_run(measurement(), (REGRESSION,), DRAFTER)
    assert [each[0] for each in explanations(known, (REGRESSION,))] == [
        "regression",
        "next",
        "differs",
        "store",
    ]
    invalid = cell_run(measurement(), (INVALID,))
    assert [each[0] for each in explanations(invalid, (INVALID,))] == ["invalid"], "never to be stored"
