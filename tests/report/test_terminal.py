"""The table at the end of a run, and what stands below it."""

from __future__ import annotations

import pytest

from pytest_speedbench.gate.check import Verdict
from pytest_speedbench.report.terminal import summary, table
from tests.report.samples import (
    BREAK_EVEN,
    CODING,
    CURVE,
    MEAN_CELL,
    PATTERN,
    below_the_table,
    check,
    measurement,
    run,
)
from tests.run.cell_runs import cell_run


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_line_of_the_table_fits(verdict: Verdict) -> None:
    cell = cell_run(
        measurement(acceptance_length=2.81, output_tps=98_765.4, user_tps=123.4, speedup=1.25),
        (check(verdict, ratio=0.839),),
    )
    assert all(len(line) <= 80 for line, _ in summary(run(cell, cell)))


def test_the_table_shows_the_worst_verdict_and_the_greatest_loss_that_has_it() -> None:
    result = cell_run(
        measurement(output_tps=900.0, acceptance_length=2.0),
        (
            check(Verdict.INCONCLUSIVE, "speedup", ratio=0.7),
            check(Verdict.REGRESSION, "output_tps", ratio=0.8),
            check(Verdict.REGRESSION, "user_tps", ratio=0.9),
        ),
    )
    (_, _), (line, color) = table([result])
    assert line.endswith("regression -20.0 %")
    assert color == "red"


def test_an_invalid_cell_is_red_even_if_it_was_not_judged() -> None:
    (_, _), (line, color) = table([cell_run(measurement(problems=("1 request failed",)), ())])
    assert line.endswith("invalid")
    assert color == "red"


def test_a_mean_is_a_line_like_others_with_its_own_verdict() -> None:
    mean = cell_run(measurement(MEAN_CELL, acceptance_length=2.5), (check(ratio=0.98, value=2.5),))
    *_, (line, color) = table([cell_run(measurement(CODING, acceptance_length=2.5), ()), mean])
    assert line.split() == ["qualitative-mean-bs32", "2.50", "regression", "-2.0", "%"]
    assert color == "red"


def test_it_tells_the_pattern_unless_the_failure_of_the_mean_does() -> None:
    told = [
        "qualitative, batch size 32: 2 of 11 categories fell: multilingual -10.2 % and",
        "  rag -9.5 %. Ask what these prompts have in common.",
    ]
    assert below_the_table(run(patterns=(PATTERN,))) == told
    passed = cell_run(measurement(MEAN_CELL), (), pattern=PATTERN)
    assert below_the_table(run(passed, patterns=(PATTERN,))) == told
    failed = cell_run(measurement(MEAN_CELL), (), failure="...", pattern=PATTERN)
    assert below_the_table(run(failed, patterns=(PATTERN,))) == []


def test_it_tells_up_to_which_batch_size_speculation_pays() -> None:
    assert below_the_table(run(break_evens=(BREAK_EVEN,))) == [
        "throughput_1k: speculation pays up to batch size 37 [95 % CI 27 .. 50] (speedup",
        "  1.12 at 16, 0.93 at 64)",
    ]


def test_it_tells_what_a_batch_buys_and_costs() -> None:
    assert below_the_table(run(pareto_curves=(CURVE,))) == [
        "throughput_1k, tokens/s of the batch and of a user: 350.3 and 508.8 at batch",
        "  size 1, 1303 and 439.7 at 8, 1290 and 101.5 at 32; another batch size beats",
        "  32",
    ]
