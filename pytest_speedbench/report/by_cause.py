"""The failures of a run in blocks, one per cause: what cells have in common once, and the cells in a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_speedbench.catalogue import METRICS
from pytest_speedbench.gate.check import SEVERITY, Check, Verdict
from pytest_speedbench.report.failure import is_estimated, measure_more
from pytest_speedbench.report.wording import counted, interval, listed, percent, values, wrapped
from pytest_speedbench.speed_bench import GATED

if TYPE_CHECKING:
    from pytest_speedbench.cells import Cell
    from pytest_speedbench.run.ledger import CellRun
    from pytest_speedbench.run.results import RunResult

ROWS_AT_MOST = 5
"""Rows of a block in a terminal, unless `-v` is given."""
_REASONS_AT_MOST = 3
_WIDTH = 80


@dataclass(frozen=True)
class Row:
    """One failed check, or one cell that was not judged."""

    cell: Cell
    metric: str = ""
    values: str = ""
    """`3.00 -> 2.81`."""
    change: str = ""
    """`-6.3 %`."""
    interval: str = ""
    """95 % CI, `-7.0 .. -5.6`."""


@dataclass(frozen=True)
class Block:
    """Failures with one cause."""

    title: str
    """`cause: drafter`, or what else they are: `no-baseline`, `not measured`."""
    rows: tuple[Row, ...]
    """The worst first."""
    paragraphs: tuple[str, ...]
    """What they have in common: the reason, and what to do next."""
    size: str
    """`22 checks`."""
    is_regression: bool = False


_Judged = tuple["CellRun", Check]


def failed_blocks(result: RunResult) -> tuple[Block, ...]:
    """The failures of a run, the most severe first.

    Args:
        result: of the run.
    """
    failed = [(known, known.settled[metric]) for known in result.cells for metric in known.failing]
    unjudged = [known for known in result.cells if known.failures and not known.failing]
    missing = [known for known in unjudged if known.error is not None]
    refused = [known for known in unjudged if known.error is None and known.refused is not None]
    others = [
        *(
            text
            for known in unjudged
            if known not in (*missing, *refused)
            for text in known.failures.values()
        ),
        *result.failures.values(),
    ]
    found = list(_blocks(failed))
    if missing:
        reasons = _reasons((known.error or "").partition("\n")[0] for known in missing)
        rows = tuple(Row(known.cell) for known in missing)
        found.append(Block("not measured", rows, reasons, counted(len(rows), "cell")))
    if refused:
        reasons = _reasons(known.refused or "" for known in refused)
        rows = tuple(Row(known.cell) for known in refused)
        found.append(Block("refused as a baseline", rows, reasons, counted(len(rows), "cell")))
    if others:
        reasons = _reasons(text.partition("\n")[0] for text in others)
        found.append(Block("other failures", (), reasons, counted(len(others), "test")))
    return tuple(found)


def notable_blocks(result: RunResult) -> tuple[Block, ...]:
    """What fails no test and should be seen: what is inconclusive, or better than its baseline.

    Beside a failure, what is inconclusive asks for nothing.

    Args:
        result: of the run.
    """
    blocks = _blocks((known, known.settled[metric]) for known in result.cells for metric in known.notable)
    if not any(known.failing for known in result.cells):
        return blocks
    return tuple(
        replace(block, paragraphs=()) if block.title == Verdict.INCONCLUSIVE.value else block
        for block in blocks
    )


def _blocks(judged: Iterable[_Judged]) -> tuple[Block, ...]:
    """Checks in blocks: regressions by the word of their cause, others by verdict."""
    groups: dict[str, list[_Judged]] = {}
    for known, check in sorted(judged, key=_badness, reverse=True):
        regressed = check.verdict is Verdict.REGRESSION and known.cause is not None
        title = f"cause: {known.cause.word}" if regressed and known.cause else check.verdict.value
        groups.setdefault(title, []).append((known, check))
    return tuple(
        Block(
            title,
            tuple(map(_row, group)),
            _common(group),
            counted(len(group), "check"),
            is_regression=group[0][1].verdict is Verdict.REGRESSION,
        )
        for title, group in groups.items()
    )


def headline(result: RunResult) -> str | None:
    """What failed, in one sentence: verdict, how much of the run, cause, the worst cell. None where nothing did.

    Args:
        result: of the run.
    """
    regressed = [
        (known, known.settled[metric])
        for known in result.cells
        for metric in known.failing
        if known.settled[metric].verdict is Verdict.REGRESSION
    ]
    texts = [
        _fallen(metric, result.cells, fallen)
        for metric in GATED
        if (fallen := [(known, check) for known, check in regressed if check.metric == metric])
    ]
    if texts:
        texts[0] = f"REGRESSION: {texts[0]}"
    for block in failed_blocks(result):
        if not block.is_regression:
            reason = f", {block.paragraphs[0]}" if block.paragraphs and not texts else ""
            texts.append(f"{block.title.upper()}: {block.size}{reason}")
    return "; ".join(texts) or None


def block_lines(block: Block, *, all_rows: bool) -> list[str]:
    """A block for a terminal, in lines of at most 80 columns.

    Args:
        block: to be shown.
        all_rows: whether to list every cell, and not the worst ones alone.
    """
    rows = block.rows if all_rows else block.rows[:ROWS_AT_MOST]
    splits = {row.cell.split for row in block.rows}
    split = splits.pop() if len(splits) == 1 else ""
    cells = [
        [
            row.cell.id.removeprefix(f"{split}-"),
            _short_name(row.metric),
            row.values,
            row.change,
            f"[{row.interval}]" if row.interval else "",
        ]
        for row in rows
    ]
    table = _aligned(cells)
    if any(len(line) > _WIDTH for line in table):
        table = _aligned([row[:-1] for row in cells])
    left_out = len(block.rows) - len(rows)
    more = [f"  and {left_out} more, listed with -v"] if left_out else []
    paragraphs = [line for text in block.paragraphs for line in wrapped(text, 2, 4)]
    return [f"{block.title}, {split}" if split else block.title, *table, *more, *paragraphs]


def _short_name(metric: str) -> str:
    """The title of its column in the table, which is narrow."""
    return (METRICS[metric].column or METRICS[metric].label) if metric else ""


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _badness(judged: _Judged) -> tuple[int, float]:
    _, check = judged
    ratio = 1.0 if check.ratio is None else check.ratio
    return SEVERITY.index(check.verdict), ratio if check.verdict is Verdict.IMPROVEMENT else -ratio


def _row(judged: _Judged) -> Row:
    known, check = judged
    return Row(
        known.cell,
        check.metric,
        values(check, estimated=is_estimated(known)),
        "" if check.ratio is None else percent(check.ratio),
        interval(check.ci_low, check.ci_high),
    )


def _common(group: Sequence[_Judged]) -> tuple[str, ...]:
    """What the checks of one block have in common."""
    worst, check = group[0]
    if worst.cause is not None and check.verdict is Verdict.REGRESSION:
        same = all(known.cause is not None and known.cause.reason == worst.cause.reason for known, _ in group)
        where = "" if same else f"{worst.cell.id}: "
        return f"{where}{worst.cause.reason}", f"next: {worst.cause.advice}"
    reasons = _reasons(
        reason.replace(known.cell.id, "this cell") for known, check in group for reason in check.reasons
    )
    if check.verdict is Verdict.INCONCLUSIVE:
        return *reasons, measure_more({each.metric for _, each in group})
    if check.verdict is Verdict.IMPROVEMENT:
        return *reasons, "the baseline is stale"
    return reasons


def _reasons(reasons: Iterable[str]) -> tuple[str, ...]:
    """Every sentence once, the first few of them."""
    distinct = list(dict.fromkeys(reasons))
    more = len(distinct) - _REASONS_AT_MOST
    return (*distinct[:_REASONS_AT_MOST], *([f"and {counted(more, 'other reason')}"] if more > 0 else []))


def _fallen(metric: str, cells: Sequence[CellRun], fallen: Sequence[_Judged]) -> str:
    """`acceptance_length fell in 11 of 11 categories at batch size 1 (drafter), worst: roleplay -12.3 %`."""
    single = [each for each in fallen if not each[0].cell.is_mean]
    worst, check = min(single or fallen, key=lambda each: each[1].ratio or 1.0)
    change = percent(check.ratio or 1.0)
    groups = dict.fromkeys((known.cell.split, known.cell.batch_size) for known, _ in single or fallen)
    judged = sum(
        metric in known.asserted
        and not known.cell.is_mean
        and (known.cell.split, known.cell.batch_size) in groups
        for known in cells
    )
    words = list(dict.fromkeys(known.cause.word for known, _ in fallen if known.cause is not None))
    blamed = f" ({listed(words)})" if words else ""
    if single and judged == 1:
        return f"{metric} fell in {worst.cell.id}{blamed}: {change}"
    sizes = sorted({size for _, size in groups})
    at = f"batch size {sizes[0]}" if len(sizes) == 1 else f"batch sizes {listed(list(map(str, sizes)))}"
    if not single:
        where = f"in the mean over categories at {at}"
    else:
        where = f"in {len(single)} of {judged} {'categories' if len(groups) == 1 else 'cells'} at {at}"
    name = worst.cell.category if len(groups) == 1 else worst.cell.id
    return f"{metric} fell {where}{blamed}, worst: {name} {change}"
