"""The table at the end of a run: one line per cell, then the mean over categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_speedbench.gate.checks import SEVERITY, Verdict
from pytest_speedbench.report.words import data_line, number, percent, target_line

if TYPE_CHECKING:
    from pytest_speedbench.report.results import CellResult, RunResult

Line = tuple[str, "str | None"]
"""Text, and the colour it deserves (None for none)."""

COLORS = {
    Verdict.PASS: "green",
    Verdict.IMPROVEMENT: "cyan",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.INCOMPARABLE: "yellow",
    Verdict.NO_BASELINE: "red",
    Verdict.INVALID: "red",
    Verdict.REGRESSION: "red",
}
COLUMNS = {"acceptance_length": "AL", "output_tps": "out TPS", "speedup": "speedup"}


def summary(result: RunResult) -> list[Line]:
    """Everything that is printed at the end of a run, in lines of at most 80 columns.

    Args:
        result: of the run.
    """
    hardware = f" on {result.hardware.key}" if result.hardware else ""
    lines: list[Line] = [
        (f"{target_line(result.target)}{hardware}", None),
        (data_line(result.conditions), None),
    ]
    if result.cells:
        lines += table(result.cells, saving=result.saving)
    for notice in result.notices:
        lines += [("", None), *((line, "yellow") for line in notice.splitlines())]
    lines += [(f"warning: {text}", "yellow") for text in result.warnings]
    return lines + [(text, None) for text in result.messages]


def table(cells: Sequence[CellResult], *, saving: bool = False) -> list[Line]:
    """One line per cell, then one per split and batch size with the unweighted mean over its categories.

    The last column shows the verdict, and the change of the judged metric that fell most.

    Args:
        cells: in the order of the lines.
        saving: whether they become the baseline, so that only what is invalid is a verdict.
    """
    shown = [metric for metric in COLUMNS if any(metric in cell.measurement.metrics for cell in cells)]
    rows: list[tuple[list[str], str | None]] = [
        (["cell", *(COLUMNS[metric] for metric in shown), "verdict"], None)
    ]
    rows += [(_cell_row(cell, shown, saving), _color(cell, saving)) for cell in cells]
    rows += [(row, None) for row in _mean_rows(cells, shown)]
    widths = [max(len(row[column]) for row, _ in rows) for column in range(len(shown) + 2)]
    return [(_line(row, widths), color) for row, color in rows]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    numbers = [text.rjust(width) for text, width in zip(row[1:-1], widths[1:-1], strict=True)]
    return "  ".join([row[0].ljust(widths[0]), *numbers, row[-1]]).rstrip()


def _cell_row(cell: CellResult, shown: Sequence[str], saving: bool) -> list[str]:
    values = [cell.measurement.metrics.get(metric) for metric in shown]
    texts = [
        "-" if value is None else number(metric, value) for metric, value in zip(shown, values, strict=True)
    ]
    return [cell.measurement.cell.id, *texts, _verdict(cell, saving)]


def _verdict(cell: CellResult, saving: bool) -> str:
    worst = _worst(cell)
    ratios = [check.ratio for check in cell.checks if check.ratio is not None]
    name = "measured" if worst is None or (saving and worst is not Verdict.INVALID) else worst.value
    return f"{name} {percent(min(ratios))}" if ratios else name


def _worst(cell: CellResult) -> Verdict | None:
    if cell.measurement.problems:
        return Verdict.INVALID
    return max((check.verdict for check in cell.checks), key=SEVERITY.index, default=None)


def _color(cell: CellResult, saving: bool) -> str | None:
    worst = _worst(cell)
    return None if worst is None or (saving and worst is not Verdict.INVALID) else COLORS[worst]


def _mean_rows(cells: Sequence[CellResult], shown: Sequence[str]) -> list[list[str]]:
    groups: dict[tuple[str, int], list[CellResult]] = {}
    for cell in cells:
        groups.setdefault((cell.measurement.cell.split, cell.measurement.cell.batch_size), []).append(cell)
    return [
        [f"{split}-mean-bs{batch_size}", *(_mean(members, metric) for metric in shown), _mean_change(members)]
        for (split, batch_size), members in groups.items()
        if len(members) > 1
    ]


def _mean(cells: Sequence[CellResult], metric: str) -> str:
    values = [cell.measurement.metrics.get(metric) for cell in cells]
    known = [value for value in values if value is not None]
    return number(metric, sum(known) / len(known)) if len(known) == len(values) else "-"


def _mean_change(cells: Sequence[CellResult]) -> str:
    """Change of the mean of the first metric that was judged in every category."""
    for metric in COLUMNS:
        checks = [check for cell in cells for check in cell.checks if check.metric == metric]
        pairs = [
            (check.value, check.baseline)
            for check in checks
            if check.ratio and check.value and check.baseline
        ]
        if pairs and len(pairs) == len(cells):
            change = percent(sum(value for value, _ in pairs) / sum(baseline for _, baseline in pairs))
            return f"{COLUMNS[metric]} {change}"
    return ""
