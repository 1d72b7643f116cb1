"""The lines that say how small a loss a run would have caught, and which of its checks are underpowered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_speedbench.catalogue import METRICS
from pytest_speedbench.gate.sensitivity import Sensitivity, Underpowered, sensitivities, underpowered
from pytest_speedbench.report.wording import counted, loss
from pytest_speedbench.speed_bench import ACCEPTANCE

if TYPE_CHECKING:
    from pytest_speedbench.run.ledger import CellRun


def power(cells: Sequence[CellRun]) -> tuple[tuple[Sensitivity, ...], tuple[Underpowered, ...]]:
    """The sensitivity of a run's checks, and those that are underpowered.

    Args:
        cells: of the run.
    """
    checks = {
        cell.cell: {check.metric: check for check in cell.checks}
        for cell in cells
        if cell.measurement is not None and not cell.measurement.problems
    }
    return sensitivities(checks), underpowered(checks)


def sensitivity_line(found: Sequence[Sensitivity]) -> str | None:
    """`sensitivity (95 % power): acceptance length 3.0 % per category, 1.0 % on the mean; output TPS 6.1 % ...`."""
    parts = []
    for metric in dict.fromkeys(each.metric for each in found):
        losses = [
            f"{loss(each.loss)} {'on the mean' if each.of_means else 'per category'}"
            for each in found
            if each.metric == metric
        ]
        parts.append(f"{METRICS[metric].label} {', '.join(losses)}")
    return f"sensitivity (95 % power): {'; '.join(parts)}" if parts else None


def underpowered_lines(cells: Sequence[CellRun], found: Sequence[Underpowered]) -> list[str]:
    """One line about checks that are too noisy for their tolerance, and one about those of unknown noise.

    Args:
        cells: of the run, to count their checks.
        found: the underpowered checks, the worst first.
    """
    judged = counted(sum(check.ratio is not None for cell in cells for check in cell.checks), "check")
    lines = []
    noisy = [each for each in found if each.detectable_loss is not None]
    if noisy:
        worst = noisy[0]
        lines.append(
            f"{len(noisy)} of {judged} {_are(len(noisy))} underpowered. Worst: {worst.metric} of {worst.cell}, tolerance "
            f"{100 * worst.tolerance:.3g} %, smallest detectable loss {loss(worst.detectable_loss or 0.0)}. Add "
            f"{'prompts' if worst.metric in ACCEPTANCE else 'rounds'} or raise the tolerance"
        )
    unknown = len(found) - len(noisy)
    if unknown:
        lines.append(
            f"{unknown} of {judged} {_are(unknown)} of unknown sensitivity: the noise between rounds is not known"
        )
    return lines


def _are(number_of: int) -> str:
    return "is" if number_of == 1 else "are"
