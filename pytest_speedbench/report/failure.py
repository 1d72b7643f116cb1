"""The text of a failed test: what fell, by how much, how sure that is, and who is to blame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_speedbench.gate.check import SEVERITY, Check, Verdict
from pytest_speedbench.report.cause_text import cause_lines
from pytest_speedbench.report.wording import cell_line, listed, loss, number, percent, target_line, wrapped
from pytest_speedbench.speed_bench import ACCEPTANCE

if TYPE_CHECKING:
    from pytest_speedbench.gate.explain.cause import Cause
    from pytest_speedbench.run.ledger import CellRun
    from pytest_speedbench.settings.target import Target

MARGIN = 20
"""Columns before the numbers."""


def failure_text(
    known: CellRun,
    checks: Sequence[Check],
    target: Target,
    *,
    baseline: str,
    log: str | None,
    save_command: str | None,
) -> str:
    """Explain checks of one cell to the person whose change they judge.

    Args:
        known: the cell, with its cause where a check is a regression.
        checks: those a test asked for.
        target: what was measured.
        baseline: what it was compared with, in words: a file or another target.
        log: the engine's log, or None where it was not launched here.
        save_command: stores this run's measurements; None where there is no file to store them in.

    Returns:
        Lines of at most 79 columns.
    """
    lines = wrapped(f"{cell_line(known.cell)}: {_gist(checks, known.cause)}")
    lines.append(target_line(target))
    for check in checks:
        lines += _check_lines(check, stored=save_command is not None)
    if known.cause is not None:
        regressed = {check.metric for check in known.checks if check.verdict is Verdict.REGRESSION}
        breakdown = known.cause.breakdown
        lines += cause_lines(known.cause, parts=breakdown is not None and breakdown.metric in regressed)
    lines += _unsure_lines(checks)
    if known.pattern is not None:
        lines += wrapped(f"pattern: {known.pattern.sentence}", 2, 4)
    for differs in dict.fromkeys(line for check in checks for line in check.differs):
        other = baseline if save_command is None else "the baseline"
        lines += wrapped(f"differs from {other}: {differs}", 2, 4)
    for note in () if known.measurement is None else known.measurement.notes:
        lines += wrapped(f"note: {note}", 2, 4)
    lines += _compared_lines([check for check in checks if check.ratio is not None], baseline)
    if log is not None:
        lines.append(f"  engine log: {log}")
    verdicts = {check.verdict for check in checks}
    worth_storing = Verdict.INVALID not in verdicts and verdicts != {Verdict.INCONCLUSIVE}
    if save_command is not None and worth_storing:
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


def _check_lines(check: Check, *, stored: bool) -> list[str]:
    lines = [f"  {check.metric:<{MARGIN - 2}}{change(check)}"]
    verdict = check.verdict.value.upper()
    reasons = list(check.reasons)
    if check.verdict is Verdict.IMPROVEMENT:
        verdict += f" (by more than {100 * check.tolerance:.3g} %)"
        reasons = [*(["the baseline is stale"] if stored else []), *check.reasons]
    elif check.ratio is not None:
        verdict += f" (tolerance -{100 * check.tolerance:.3g} %)"
    if check.verdict is Verdict.INCONCLUSIVE and check.detectable_loss is not None:
        reasons.insert(0, f"could have seen a loss of {loss(check.detectable_loss)}")
    if reasons:
        verdict += f": {'; '.join(reasons)}"
    return lines + wrapped(verdict, MARGIN, MARGIN + 2)


def _unsure_lines(checks: Sequence[Check]) -> list[str]:
    """What would settle a cell in which nothing is worse than inconclusive.

    Acceptance length is known by its prompts, and all else by its rounds.
    """
    worst = max((check.verdict for check in checks), key=SEVERITY.index)
    if worst is not Verdict.INCONCLUSIVE:
        return []
    unsure = {check.metric for check in checks if check.verdict is worst}
    if unsure & set(ACCEPTANCE):
        more = "prompts or rounds (--speedbench-limit, --speedbench-max-rounds)"
    elif unsure == {"speedup"}:  # nobody looks again: the engine without speculation runs once
        more = "rounds (--speedbench-rounds)"
    else:
        more = "rounds (--speedbench-max-rounds)"
    return wrapped(f"to be surer, measure more {more}, or allow more (--speedbench-tolerance)", 2, 4)


def _compared_lines(compared: Sequence[Check], baseline: str) -> list[str]:
    """How much was compared: prompts that are in both, and rounds of either."""
    lines: list[str] = []
    paired = max(compared, key=lambda check: check.paired, default=None)
    if paired is not None and paired.paired:
        lines += wrapped(f"{paired.paired} of {paired.prompts} prompts paired with {baseline}", 2, 4)
    rounds: dict[str, list[str]] = {}
    for check in compared:
        if check.rounds and check.baseline_rounds:
            ours = f"{check.rounds} round{'' if check.rounds == 1 else 's'}"
            rounds.setdefault(f"{ours} against {check.baseline_rounds}", []).append(check.metric)
    if len(rounds) == 1:
        return [*lines, f"  {next(iter(rounds))}"]
    return lines + [
        line for text, metrics in rounds.items() for line in wrapped(f"{text} for {listed(metrics)}", 2, 4)
    ]
