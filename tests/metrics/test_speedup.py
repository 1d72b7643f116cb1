from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_speedbench.cells import Cell
from pytest_speedbench.metrics.measurement import Measurement, RoundFigures
from pytest_speedbench.metrics.speedup import with_speedup

CELL = Cell("throughput_1k", "mixed", 8)


def measured(*output_tps: float | None) -> Measurement:
    rounds = tuple(RoundFigures(value, None, 2.0, None) for value in output_tps)
    return Measurement(CELL, {"output_tps": 100.0}, (), {}, rounds, 1, 1, 0, {})


def test_speedup_is_told_of_every_round_and_is_their_median() -> None:
    found = with_speedup(measured(100, 300, 120), measured(50, 100, 100))
    assert [figures.speedup for figures in found.rounds] == [2, 3, 1.2]
    assert found.metrics["speedup"] == 2
    assert "speedup" not in found.missing


def test_rounds_that_one_side_lacks_have_no_speedup() -> None:
    found = with_speedup(measured(100, None, 90, 80), measured(50, 50, 30))
    assert [figures.speedup for figures in found.rounds] == [2, None, 3, None]
    assert found.metrics["speedup"] == 2.5


UNTIMED = replace(measured(100), metrics={}, missing={"output_tps": "the client was overloaded"})


@pytest.mark.parametrize(
    ("ours", "theirs", "reason", "why"),
    [
        (measured(100), measured(50), "this target is method none", "this target is method none"),
        (UNTIMED, measured(50), None, "the client was overloaded"),
        (measured(100), None, None, "the target was not measured without speculation"),
        (measured(100), UNTIMED, None, "without speculation: the client was overloaded"),
        (
            measured(100),
            replace(measured(50), problems=("1 of 2 requests failed",)),
            None,
            "without speculation: 1 of 2 requests failed",
        ),
        (
            measured(None, 100),
            measured(50, None),
            None,
            "no round was timed both with speculation and without",
        ),
        (measured(100), measured(), None, "no round was timed both with speculation and without"),
    ],
)
def test_a_speedup_that_cannot_be_had_has_its_reason(
    ours: Measurement, theirs: Measurement | None, reason: str | None, why: str
) -> None:
    found = with_speedup(ours, theirs, reason)
    assert found.missing["speedup"] == why
    assert "speedup" not in found.metrics
    assert found.rounds == ours.rounds
