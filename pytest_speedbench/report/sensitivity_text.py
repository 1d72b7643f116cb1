"""The lines that say what a run could have seen, and which of its checks could not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_speedbench.catalogue import METRICS
from pytest_speedbench.gate.sensitivity import Sensitivity, Underpowered, sensitivities, underpowered
from pytest_speedbench.report.wording import listed, loss
from pytest_speedbench.speed_bench import ACCEPTANCE

if TYPE_CHECKING:
    from pytest_speedbench.run.ledger import CellRun


def seen(cells: Sequence[CellRun]) -> tuple[tuple[Sensitivity, ...], tuple[Underpowered, ...]]:
    """What the checks of a run could have seen, and those that could not see their own tolerance.

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
    """`this run could have seen a loss of 2.1 % in acceptance length and 6.0 % in output TPS`."""
    single, means = (
        [f"{loss(each.loss)} in {METRICS[each.metric].label}" for each in found if each.of_means is of_means]
        for of_means in (False, True)
    )
    if not found:
        return None
    if not means:
        return f"this run could have seen a loss of {listed(single)}"
    mean = f"{listed(means)} in the mean over categories"
    if not single:
        return f"this run could have seen a loss of {mean}"
    return f"this run could have seen a loss of {listed(single)} in any category, and of {mean}"


def underpowered_lines(cells: Sequence[CellRun], found: Sequence[Underpowered]) -> list[str]:
    """One line about checks that are too noisy for their tolerance, and one about those of unknown noise.

    Args:
        cells: of the run, to count their checks.
        found: the checks that could not see their own tolerance, the worst first.
    """
    judged = sum(check.ratio is not None for cell in cells for check in cell.checks)
    lines = []
    noisy = [each for each in found if each.detectable_loss is not None]
    if noisy:
        worst = noisy[0]
        subject = (
            f"{len(noisy)} of {judged} checks could not have seen a loss of {'its' if len(noisy) == 1 else 'their'} "
            "own tolerance"
        )
        lines.append(
            f"{subject}: {'it is' if len(noisy) == 1 else 'the worst is'} {worst.metric} of {worst.cell}, which "
            f"allows {100 * worst.tolerance:.3g} % and sees {loss(worst.detectable_loss or 0.0)}; measure more "
            f"{'prompts' if worst.metric in ACCEPTANCE else 'rounds'}, or allow more"
        )
    unknown = len(found) - len(noisy)
    if unknown:
        lines.append(
            f"{unknown} of {judged} checks {'knows' if unknown == 1 else 'know'} nothing of "
            f"{'its' if unknown == 1 else 'their'} noise, and nobody can say what {'it' if unknown == 1 else 'they'} "
            "could have seen"
        )
    return lines
