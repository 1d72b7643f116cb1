"""How small a loss the run would have failed, below the table."""

from __future__ import annotations

from dataclasses import replace

from pytest_speedbench.gate.check import Verdict
from tests.report.samples import (
    CODING,
    MEAN_CELL,
    SLOWER,
    WIDEST,
    below_the_table,
    check,
    estimate,
    measurement,
    run,
)
from tests.run.cell_runs import cell_run


def test_it_states_the_sensitivity_of_each_metric() -> None:
    cells = [
        cell_run(measurement(CODING), (check(Verdict.PASS, detectable_loss=0.034), SLOWER)),
        cell_run(
            measurement(MEAN_CELL),
            (check(Verdict.PASS, detectable_loss=0.012), replace(SLOWER, detectable_loss=0.0221)),
        ),
    ]
    assert below_the_table(run(*cells)) == [
        "sensitivity (95 % power): acceptance length 3.4 % per category, 1.2 % on the",
        "  mean; output TPS 6.1 % per category, 2.2 % on the mean",
    ]
    assert below_the_table(run(*cells[:1])) == [
        "sensitivity (95 % power): acceptance length 3.4 % per category; output TPS",
        "  6.1 % per category",
    ]


def test_it_counts_underpowered_checks() -> None:
    blind = replace(
        SLOWER, verdict=Verdict.INCONCLUSIVE, estimate=estimate(0.933, 0.03), detectable_loss=0.17
    )
    worse = replace(blind, metric="user_tps", detectable_loss=0.2)
    unknown = replace(SLOWER, estimate=estimate(0.933, None), detectable_loss=None)
    result = run(
        cell_run(measurement(CODING), (check(Verdict.PASS), blind, worse)),
        cell_run(measurement(WIDEST), (unknown,)),
    )
    assert below_the_table(result)[2:] == [
        "2 of 4 checks are underpowered. Worst: user_tps of qualitative-coding-bs32,",
        "  tolerance 5 %, smallest detectable loss 20.0 %. Add rounds or raise the",
        "  tolerance",
        "1 of 4 checks is of unknown sensitivity: the noise between rounds is not known",
    ]


def test_a_run_that_judged_nothing_saw_nothing() -> None:
    assert below_the_table(run(cell_run(measurement(CODING), ()))) == []
    judged = cell_run(measurement(CODING), (SLOWER,))
    assert below_the_table(run(judged, saving=True)) == []
