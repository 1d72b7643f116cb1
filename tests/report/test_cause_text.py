"""A cause with its parts fits a terminal of 80 columns, whatever the numbers are."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.gate.explain.cause import Cause, PositionChange
from pytest_speedbench.gate.explain.decomposition import Breakdown, Part
from pytest_speedbench.report.cause_text import cause_lines
from tests.report.samples import DRAFTER

PARTS = st.builds(
    Part,
    st.floats(0.01, 9),
    st.none() | st.floats(0.01, 9),
    st.floats(0.01, 9),
    st.none() | st.floats(0, 1),
)


@given(st.sampled_from(["output_tps", "user_tps", "speedup"]), st.lists(PARTS, min_size=5, max_size=5))
def test_every_line_of_a_cause_fits(metric: str, parts: list[Part]) -> None:
    change, length, latency, rest, plain = parts
    cause = Cause(
        "both",
        "A step yields 99.9 % fewer tokens (50 % of the output_tps loss) and takes 99.9 % longer (50 %).",
        "check the draft model.",
        Breakdown(metric, change, length, latency, rest, plain if metric == "speedup" else None),
        tuple(PositionChange(position, 0.9, 0.8) for position in range(1, 16)),
    )
    assert all(len(line) <= 79 for line in cause_lines(cause, parts=True))


def test_user_tps_has_no_rest_to_speak_of() -> None:
    assert DRAFTER.breakdown is not None
    breakdown = replace(DRAFTER.breakdown, metric="user_tps", rest=Part(1.0, 1.0, 1.0, 0.0))
    lines = cause_lines(replace(DRAFTER, breakdown=breakdown), parts=True)
    assert not any("all else" in line for line in lines)
