"""The end of a run: one line per cell, and what can be said of all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_speedbench.catalogue import METRICS
from pytest_speedbench.gate.check import Verdict
from pytest_speedbench.report.by_cause import Block, block_lines, failed_blocks, headline, notable_blocks
from pytest_speedbench.report.failure import failure_text, is_estimated
from pytest_speedbench.report.sensitivity_text import power, sensitivity_line, underpowered_lines
from pytest_speedbench.report.wording import counted, data_line, listed, number, percent, target_line, wrapped

if TYPE_CHECKING:
    from pytest_speedbench.metrics.measurement import Measurement
    from pytest_speedbench.metrics.pareto import ParetoCurve
    from pytest_speedbench.run.ledger import CellRun
    from pytest_speedbench.run.results import RunResult

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
ESTIMATED = "~ is estimated: stream events were taken for decode steps, as the engine does not count them"
COLUMNS = {name: metric.column for name, metric in METRICS.items() if metric.column is not None}


def summary(result: RunResult, verbosity: int = 0) -> list[Line]:
    """Everything that is printed at the end of a run, in lines of at most 80 columns.

    Args:
        result: of the run.
        verbosity: pytest's; above 0 nothing is folded.
    """
    hardware = f" on {result.hardware.key}" if result.hardware else ""
    first = headline(result)
    lines: list[Line] = [(line, "red") for line in wrapped(first)] if first else []
    lines += [(f"{target_line(result.target)}{hardware}", None), (data_line(result.conditions), None)]
    if result.cells:
        lines += table(result.cells, saving=result.saving)
    blocks = failed_blocks(result)
    if sum(len(known.failures) for known in result.cells) > 1:
        # a single failure is explained just above, by its test
        lines += [line for block in blocks for line in _shown(block, "red", verbosity)]
    lines += [(line, color) for text, color in findings(result) for line in wrapped(text)]
    lines += _notable(result, verbosity)
    lines += [(line, "yellow") for text in not_made(result) for line in wrapped(text)]
    lines += [(f"warning: {text}", "yellow") for text in result.warnings]
    return lines + [(text, None) for text in result.messages]


def _shown(block: Block, color: str, verbosity: int) -> list[Line]:
    title, *rest = block_lines(block, all_rows=verbosity > 0)
    return [("", None), (title, color), *((line, None) for line in rest)]


def _notable(result: RunResult, verbosity: int) -> list[Line]:
    """What fails nothing and should be seen: in full where it is of one cell, or asked for, else as one block each."""
    if verbosity <= 0 and sum(known.notable != () for known in result.cells) > 1:
        return [line for block in notable_blocks(result) for line in _shown(block, "yellow", verbosity)]
    lines: list[Line] = []
    for notice in notices(result):
        lines += [("", None), *((line, "yellow") for line in notice.splitlines())]
    return lines


def not_made(result: RunResult) -> list[str]:
    """How many checks were not made: a paragraph, or none.

    Args:
        result: of the run.
    """
    if not result.not_made:
        return []
    number_of = len(result.not_made)
    return [
        f"{counted(number_of, 'check')} {'was' if number_of == 1 else 'were'} not made: the baseline holds throughput of "
        "other hardware only; --speedbench-incomparable=fail makes that a failure"
    ]


def findings(result: RunResult) -> list[Line]:
    """What a run says beyond its cells, one paragraph each, unwrapped.

    These are patterns of loss that no failure describes already, the break-even points, what a larger batch buys and
    costs, and how sensitive the checks were.

    Args:
        result: of the run.
    """
    described = {
        (cell.pattern.split, cell.pattern.batch_size)
        for cell in result.cells
        if cell.pattern is not None and cell.failures
    }
    lines: list[Line] = [
        (f"{pattern.split}, batch size {pattern.batch_size}: {pattern.sentence}", "red")
        for pattern in result.patterns
        if (pattern.split, pattern.batch_size) not in described
    ]
    lines += [(each.text, None) for each in result.break_evens]
    lines += [(_pareto(curve), None) for curve in result.pareto_curves]
    lines += [
        (text, None)
        for cell in result.cells
        if cell.measurement is not None and (text := _random_control(cell.measurement))
    ]
    if any(is_estimated(cell) for cell in result.cells):
        lines.append((ESTIMATED, "yellow"))
    if not result.saving:
        found, weak = power(result.cells)
        line = sensitivity_line(found)
        lines += [] if line is None else [(line, None)]
        lines += [(text, "yellow") for text in underpowered_lines(result.cells, weak)]
    return lines


def notices(result: RunResult) -> list[str]:
    """What a person should look at although no test failed for it, one text per cell."""
    return [
        failure_text(
            known,
            [known.settled[metric] for metric in known.notable],
            result.target,
            baseline=result.compared_with,
            log=result.log,
            save_command=result.save_command,
        )
        for known in result.cells
        if known.notable
    ]


def _pareto(curve: ParetoCurve) -> str:
    """`throughput_1k, tokens/s of the batch and of a user: 350 and 508 at batch size 1, 1303 and 440 at 8`."""
    points = [
        f"{number('output_tps', point.output_tps)} and {number('user_tps', point.user_tps)} at {point.batch_size}"
        for point in curve.points
    ]
    points[0] = points[0].replace(" at ", " at batch size ")
    beaten = [str(point.batch_size) for point in curve.points if not point.on_frontier]
    rest = f"; another batch size beats {listed(beaten)}" if beaten else ""
    return f"{curve.split}, tokens/s of the batch and of a user: {', '.join(points)}{rest}"


def _random_control(measurement: Measurement) -> str | None:
    """How far a measurement on random tokens would have been off."""
    control, real = measurement.random_control, measurement.metrics
    if control is None or not {"output_tps", "acceptance_length"} <= set(real):
        return None
    changes = {name: percent(value / real[name]) for name, value in control.items()}
    return (
        f"{measurement.cell.id}: random tokens in place of these prompts give output TPS {changes['output_tps']} and "
        f"acceptance length {changes['acceptance_length']} (not judged)"
    )


def table(cells: Sequence[CellRun], *, saving: bool = False) -> list[Line]:
    """One line per cell; a mean over categories is a cell like others.

    The last column shows the worst verdict, and the change of the metric that fell most of those that have it.

    Args:
        cells: in the order of the lines.
        saving: whether they become the baseline, so that only what is invalid is a verdict.
    """
    shown = [metric for metric in COLUMNS if any(metric in cell.metrics for cell in cells)]
    rows: list[tuple[list[str], str | None]] = [
        (["cell", *(COLUMNS[metric] for metric in shown), "verdict"], None)
    ]
    rows += [(_cell_row(cell, shown, saving), _color(cell, saving)) for cell in cells]
    widths = [max(len(row[column]) for row, _ in rows) for column in range(len(shown) + 2)]
    return [(_line(row, widths), color) for row, color in rows]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    numbers = [text.rjust(width) for text, width in zip(row[1:-1], widths[1:-1], strict=True)]
    return "  ".join([row[0].ljust(widths[0]), *numbers, row[-1]]).rstrip()


def _cell_row(cell: CellRun, shown: Sequence[str], saving: bool) -> list[str]:
    values = [cell.metrics.get(metric) for metric in shown]
    texts = [
        "-" if value is None else number(metric, value, estimated=is_estimated(cell))
        for metric, value in zip(shown, values, strict=True)
    ]
    return [cell.cell.id, *texts, _verdict(cell, saving)]


def _verdict(cell: CellRun, saving: bool) -> str:
    if cell.refused is not None:
        return "refused"
    worst = cell.verdict
    ratios = [
        check.ratio for check in cell.checks if check.ratio is not None and (saving or check.verdict is worst)
    ]
    name = "measured" if worst is None or (saving and worst is not Verdict.INVALID) else worst.value
    return f"{name} {percent(min(ratios))}" if ratios else name


def _color(cell: CellRun, saving: bool) -> str | None:
    if cell.refused is not None:
        return COLORS[Verdict.INVALID]
    worst = cell.verdict
    return None if worst is None or (saving and worst is not Verdict.INVALID) else COLORS[worst]
