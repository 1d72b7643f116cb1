"""The text of a failed test: what fell, by how much, how sure that is, and who is to blame."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_speedbench.gate.checks import SEVERITY, Check, Verdict
from pytest_speedbench.report.words import cell_line, number, percent, target_line

if TYPE_CHECKING:
    from pytest_speedbench.gate.cause import Cause
    from pytest_speedbench.report.results import CellResult
    from pytest_speedbench.settings import Target

WIDTH = 79
"""A terminal of 80 columns shows every line whole."""
MARGIN = 20
"""Columns before the numbers."""


def failure_text(
    result: CellResult,
    checks: Sequence[Check],
    target: Target,
    *,
    baseline: str,
    log: str | None,
    save_command: str | None,
) -> str:
    """Explain checks of one cell to the person whose change they judge.

    Args:
        result: the cell, with its cause where a check is a regression.
        checks: those a test asked for.
        target: what was measured.
        baseline: what it was compared with, in words: a file or another target.
        log: the engine's log, or None where it was not launched here.
        save_command: stores this run's measurements; None where there is no file to store them in.

    Returns:
        Lines of at most 79 columns.
    """
    measurement = result.measurement
    lines = [f"{cell_line(measurement.cell)}: {_gist(checks, result.cause)}", target_line(target)]
    for check in checks:
        lines += _check_lines(check)
    if result.cause is not None:
        lines += _cause_lines(result.cause)
    for differs in dict.fromkeys(line for check in checks for line in check.differs):
        lines += _wrapped(f"differs from the baseline: {differs}")
    for note in measurement.notes:
        lines += _wrapped(f"note: {note}")
    paired = max((check.paired for check in checks if check.ratio is not None), default=None)
    if paired is not None:
        lines += _wrapped(f"{paired} of {len(measurement.prompts)} prompts paired with {baseline}")
    if log is not None:
        lines.append(f"  engine log: {log}")
    verdicts = {check.verdict for check in checks}
    if save_command is not None and Verdict.INVALID not in verdicts:
        new = Verdict.NO_BASELINE in verdicts
        lines.append(
            "  to store this run as the baseline:"
            if new
            else "  if this is intended, store it as the new baseline:"
        )
        lines.append(f"    {save_command}")
    return "\n".join(lines)


def _gist(checks: Sequence[Check], cause: Cause | None) -> str:
    """The worst of it in a few words: all that pytest's short summary has room for."""
    worst = max(checks, key=lambda check: (SEVERITY.index(check.verdict), -(check.ratio or 0)))
    if worst.ratio is None:
        return f"{worst.metric} {worst.verdict.value}"
    blamed = f", {cause.word}" if cause is not None and worst.verdict is Verdict.REGRESSION else ""
    return f"{worst.metric} {percent(worst.ratio)}{blamed}"


def change(check: Check) -> str:
    """A check's numbers in one line: `3.00 -> 2.81   -6.3 %  [95 % CI -7.0 .. -5.6]`."""
    if check.ratio is None or check.baseline is None or check.value is None:
        return "not measured" if check.value is None else number(check.metric, check.value)
    text = f"{number(check.metric, check.baseline)} -> {number(check.metric, check.value)}   {percent(check.ratio)}"
    if check.ci_low is not None and check.ci_high is not None:
        low, high = (percent(limit).removesuffix(" %") for limit in (check.ci_low, check.ci_high))
        text += f"  [95 % CI {low} .. {high}]"
    return text


def _check_lines(check: Check) -> list[str]:
    lines = [f"  {check.metric:<{MARGIN - 2}}{change(check)}"]
    verdict = check.verdict.value.upper()
    if check.verdict is Verdict.IMPROVEMENT:
        verdict += f" (by more than {100 * check.tolerance:.3g} %): the baseline is stale"
    elif check.ratio is not None:
        verdict += f" (tolerance -{100 * check.tolerance:.3g} %)"
    if check.reasons:
        verdict += f": {'; '.join(check.reasons)}"
    return lines + _wrapped(verdict, MARGIN, MARGIN + 2)


def _cause_lines(cause: Cause) -> list[str]:
    lines = _wrapped(f"cause: {cause.word}. {cause.reason[:1].upper()}{cause.reason[1:]}", 2, 4)
    if cause.positions:
        fell = ", ".join(
            f"{each.position}: {each.baseline:.3f} -> {each.value:.3f}" for each in cause.positions
        )
        lines += _wrapped(f"accepted less often at position {fell}", 2, 4)
    return lines


def _wrapped(text: str, first: int = 2, rest: int = 4) -> list[str]:
    lines = textwrap.wrap(
        text.replace(" %", "\N{NO-BREAK SPACE}%"),  # a number keeps its unit
        WIDTH,
        initial_indent=" " * first,
        subsequent_indent=" " * rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]
