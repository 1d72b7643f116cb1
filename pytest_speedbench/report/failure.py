"""The text of a failed test: what fell, by how much, how sure that is, and who is to blame."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from pytest_speedbench.catalogue import ACCEPTANCE as KIND_ACCEPTANCE
from pytest_speedbench.catalogue import METRICS
from pytest_speedbench.gate.check import SEVERITY, Check, Verdict
from pytest_speedbench.report.cause_text import cause_lines
from pytest_speedbench.report.wording import (
    cell_line,
    interval,
    listed,
    loss,
    percent,
    target_line,
    values,
    wrapped,
)
from pytest_speedbench.run.outcome import advice_of, difference, how_to_store, reason_of
from pytest_speedbench.speed_bench import ACCEPTANCE

if TYPE_CHECKING:
    from pytest_speedbench.cells import Cell
    from pytest_speedbench.gate.explain.cause import Cause
    from pytest_speedbench.run.ledger import CellRun, Explanation
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
    explained: Mapping[Explanation, Cell] = MappingProxyType({}),
) -> str:
    """Explain checks of one cell to the person whose change they judge.

    What failures of other cells have explained before in this run is not explained again: the text is then the
    figures and a reference.

    Args:
        known: the cell, with its cause where a check is a regression.
        checks: those a test asked for.
        target: what was measured.
        baseline: what it was compared with, in words: a file or another target.
        log: the engine's log, or None where it was not launched here.
        save_command: stores this run's measurements; None where there is no file to store them in.
        explained: what has been explained, and by the failure of which cell.

    Returns:
        Lines of at most 79 columns.
    """
    lines = wrapped(f"{cell_line(known.cell)}: {_gist(checks, known.cause)}")
    if all(reason_of(known, check) in explained for check in checks):
        return "\n".join([*lines, *_short_lines(known, checks, explained)])
    if not explained:
        lines.append(target_line(target))
    estimated = is_estimated(known)
    said: set[tuple[str, ...]] = set()
    for check in checks:
        repeated = check.reasons in said
        said.add(check.reasons)
        lines += _check_lines(check, stored=save_command is not None, estimated=estimated, repeated=repeated)
    if known.cause is not None:
        regressed = {check.metric for check in known.checks if check.verdict is Verdict.REGRESSION}
        breakdown = known.cause.breakdown
        lines += cause_lines(
            known.cause,
            parts=breakdown is not None and breakdown.metric in regressed,
            advice=advice_of(known.cause) not in explained,
        )
    lines += _unsure_lines(checks)
    lines += _pattern_lines(known)
    for differs in dict.fromkeys(line for check in checks for line in check.differs):
        if difference(differs) not in explained:
            other = baseline if save_command is None else "the baseline"
            lines += wrapped(f"differs from {other}: {differs}", 2, 4)
    for note in () if known.measurement is None else known.measurement.notes:
        lines += wrapped(f"note: {note}", 2, 4)
    if not explained:
        lines += _compared_lines([check for check in checks if check.ratio is not None], baseline)
        lines += [] if log is None else [f"  engine log: {log}"]
    storing = how_to_store(checks)
    if save_command is not None and storing is not None and storing not in explained:
        new = Verdict.NO_BASELINE in {check.verdict for check in checks}
        lines.append(
            "  to store this run as the baseline:"
            if new
            else "  if this is intended, store it as the new baseline:"
        )
        lines.append(f"    {save_command}")
    return "\n".join(lines)


def is_estimated(known: CellRun) -> bool:
    """Whether a cell's acceptance is an estimate, since stream events were taken for steps."""
    return known.measurement is not None and known.measurement.estimated


def _short_lines(known: CellRun, checks: Sequence[Check], explained: Mapping[Explanation, Cell]) -> list[str]:
    """The figures, and which cell's failure explains them."""
    lines: list[str] = []
    causes: list[str] = []
    for check in checks:
        where = explained[reason_of(known, check)].id
        lines.append(_figures(check, estimated=is_estimated(known)))
        if check.verdict is Verdict.REGRESSION:
            word = "not known" if known.cause is None else known.cause.word
            causes.append(f"cause: {word}, as in {where}")
        else:
            verdict = f"{check.verdict.value.upper()}{_limits(check)}, as in {where}"
            lines += wrapped(verdict, MARGIN, MARGIN + 2)
    lines += [line for cause in dict.fromkeys(causes) for line in wrapped(cause, 2, 4)]
    return lines + _pattern_lines(known)


def _pattern_lines(known: CellRun) -> list[str]:
    return [] if known.pattern is None else wrapped(f"pattern: {known.pattern.sentence}", 2, 4)


def _gist(checks: Sequence[Check], cause: Cause | None) -> str:
    """The worst of it in a few words: all that pytest's short summary has room for."""
    worst = max(checks, key=lambda check: (SEVERITY.index(check.verdict), -(check.ratio or 0)))
    if worst.ratio is None:
        return f"{worst.metric} {worst.verdict.value}"
    blamed = f", {cause.word}" if cause is not None and worst.verdict is Verdict.REGRESSION else ""
    return f"{worst.metric} {percent(worst.ratio)}{blamed}"


def change(check: Check, *, estimated: bool = False) -> str:
    """A check's numbers in one line: `3.00 -> 2.81   -6.3 %  [95 % CI -7.0 .. -5.6]`.

    Args:
        check: of one metric.
        estimated: as `Measurement.estimated`.
    """
    text = values(check, estimated=estimated)
    if check.ratio is None or check.baseline is None or check.value is None:
        return text
    limits = interval(check.ci_low, check.ci_high)
    return f"{text}   {percent(check.ratio)}{f'  [95 % CI {limits}]' if limits else ''}"


def _figures(check: Check, *, estimated: bool) -> str:
    return f"  {check.metric:<{MARGIN - 2}}{change(check, estimated=estimated)}"


def _limits(check: Check, *, estimated: bool = False) -> str:
    """` (tolerance -3 %, sensitivity 17.6 %)`: what a verdict is about."""
    limits = []
    if check.verdict is Verdict.IMPROVEMENT:
        limits.append(f"by more than {100 * check.tolerance:.3g} %")
    elif check.ratio is not None:
        limits.append(f"tolerance -{100 * check.tolerance:.3g} %")
    if check.verdict is Verdict.INCONCLUSIVE and check.detectable_loss is not None:
        limits.append(f"sensitivity {loss(check.detectable_loss)}")
    if estimated and METRICS[check.metric].kind == KIND_ACCEPTANCE:
        limits.append("estimated")
    return f" ({', '.join(limits)})" if limits else ""


def _check_lines(check: Check, *, stored: bool, estimated: bool, repeated: bool) -> list[str]:
    """A check's figures and verdict; of reasons that another check of the text gives already, a reference."""
    reasons = "; ".join(check.reasons)
    if repeated and reasons:
        reasons = "as above"
    if check.verdict is Verdict.IMPROVEMENT and stored:
        reasons = "; ".join(filter(None, ["the baseline is stale", reasons]))
    verdict = f"{check.verdict.value.upper()}{_limits(check, estimated=estimated)}"
    text = f"{verdict}: {reasons}" if reasons else verdict
    return [_figures(check, estimated=estimated), *wrapped(text, MARGIN, MARGIN + 2)]


def _unsure_lines(checks: Sequence[Check]) -> list[str]:
    """What would settle a cell in which nothing is worse than inconclusive."""
    worst = max((check.verdict for check in checks), key=SEVERITY.index)
    if worst is not Verdict.INCONCLUSIVE:
        return []
    return wrapped(measure_more({check.metric for check in checks if check.verdict is worst}), 2, 4)


def measure_more(metrics: Collection[str]) -> str:
    """What would settle inconclusive checks: acceptance length is known by its prompts, and all else by its rounds.

    Args:
        metrics: of the checks.
    """
    if set(metrics) & set(ACCEPTANCE):
        more = "prompts or rounds (--speedbench-limit, --speedbench-max-rounds)"
    elif set(metrics) == {"speedup"}:
        # the engine without speculation runs once: there is no interim analysis
        more = "rounds (--speedbench-rounds)"
    else:
        more = "rounds (--speedbench-max-rounds)"
    return f"to be surer, measure more {more}, or raise the tolerance (--speedbench-tolerance)"


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
