"""The page for people says what the terminal does."""

from __future__ import annotations

from pytest_speedbench.report.markdown import text
from tests.report.samples import BREAK_EVEN, CODING, PATTERN, SLOWER, measurement, run
from tests.run.cell_runs import cell_run


def test_the_page_tells_it_too() -> None:
    cell = cell_run(measurement(CODING), (SLOWER,))
    page = text(run(cell, patterns=(PATTERN,), break_evens=(BREAK_EVEN,)))
    assert f"\n- qualitative, batch size 32: {PATTERN.sentence}\n" in page
    assert f"\n- {BREAK_EVEN.text}\n" in page
    assert "\n- sensitivity (95 % power): output TPS 6.1 % per category\n" in page
