"""Judge a batch, and measure what stays inconclusive again: the same loop for a session and for its simulation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from pytest_speedbench.cells import Cell
from pytest_speedbench.gate.baseline import Conditions, NotComparable, Reference, References
from pytest_speedbench.gate.check import Check, Verdict
from pytest_speedbench.gate.compare import compare, judged, rounds_of
from pytest_speedbench.gate.decide import interim_analyses, share_of_alpha
from pytest_speedbench.gate.mean import compare_mean
from pytest_speedbench.metrics.measurement import Measurement
from pytest_speedbench.speed_bench import ACCEPTANCE


@dataclass(frozen=True)
class Rule:
    """What a run judges by."""

    alpha: float
    """Chance that a run of an unchanged engine fails at all."""
    checks: int
    """That the run may judge: every metric of every cell and of every mean."""
    rounds: int
    """Measured of every cell."""
    max_rounds: int
    """Measured of a cell that stays inconclusive."""
    tolerance: Callable[[str, Cell], float]
    """Allowed relative loss of a metric in a cell, which may be a mean."""
    conditions: Conditions
    """Of the run."""
    hardware_key: str
    other_hardware_tolerance: float
    """Allowed relative loss of acceptance that is compared with that of other hardware, where `tolerance` is less."""
    degenerate_share: float
    """Share of requests with degenerate output above which a cell is invalid."""
    paired: bool = False
    """Whether round i was measured beside round i of the baseline."""
    left_out_of_mean: tuple[str, ...] = ()
    """Categories that are judged by themselves and are no part of the mean."""

    def counts_in_mean(self, cell: Cell) -> bool:
        """Whether a cell is part of the mean of its group."""
        return cell.category not in self.left_out_of_mean


@dataclass(frozen=True)
class Measured:
    """What is measured of a batch so far."""

    measurements: Mapping[Cell, Measurement]
    """Of every cell of the batch, means left out."""
    references: References | None
    """What they are compared with; in a comparison of two targets it grows with the rounds."""


def judge_group(
    asked: Mapping[Cell, Sequence[str]],
    measure: Callable[[Collection[Cell], int], Measured],
    rule: Rule,
) -> tuple[dict[Cell, dict[str, Check]], Measured]:
    """Judge all checks of one split and batch size, with more rounds where they stay inconclusive.

    Every interim analysis judges the checks that are still inconclusive, at their share of alpha (`decide.share_of_alpha`);
    a check that was decided stays as it was. Means are judged before their categories, which are judged at the whole
    alpha once their mean has regressed. Then the cells of inconclusive checks are measured further: its own cell
    for a category, all of them for a mean; but not for an acceptance length that is the same in every round.

    Args:
        asked: metrics that are judged, by cell. A mean is over the categories whose cell is asked the same metric, but
            for those that the rule leaves out of it.
        measure: brings these cells to a total number of rounds, and gives all that is measured of the group. At first
            it is called with all cells.
        rule: what is judged by.

    Returns:
        Checks by cell and metric, in the order of `asked`, and what was measured last.

    Raises:
        ValueError: no cell of a category, or cells of several groups.
    """
    cells = [cell for cell in asked if not cell.is_mean]
    if not cells or not all(cell.shares_group(cells[0]) for cell in asked):
        raise ValueError(f"no group: {', '.join(cell.id for cell in asked) or 'no cell'}")
    decided: dict[tuple[Cell, str], Check] = {}
    stops = interim_analyses(rule.rounds, rule.max_rounds)
    wanted: Collection[Cell] = cells
    for analysis, rounds in enumerate(stops):
        measured = measure(wanted, rounds)
        alpha = share_of_alpha(rule.alpha, rule.checks, rule.rounds, rule.max_rounds, analysis)
        decided.update(_judge(asked, cells, measured, rule, alpha, decided))
        unsure = [key for key, check in decided.items() if check.verdict is Verdict.INCONCLUSIVE]
        wanted = [
            cell
            for cell in cells
            if any(
                metric in asked[cell] and (of == cell or (of.is_mean and rule.counts_in_mean(cell)))
                for of, metric in unsure
                if not _repeats(measured.measurements[cell], metric)
            )
        ]
        if not wanted:
            break
    return {
        cell: {metric: decided[cell, metric] for metric in metrics} for cell, metrics in asked.items()
    }, measured


def _judge(
    asked: Mapping[Cell, Sequence[str]],
    cells: Sequence[Cell],
    measured: Measured,
    rule: Rule,
    alpha: float,
    decided: Mapping[tuple[Cell, str], Check],
) -> dict[tuple[Cell, str], Check]:
    """Every check that is still open, by what is measured so far."""

    def is_open(cell: Cell, metric: str) -> bool:
        return (cell, metric) not in decided or decided[cell, metric].verdict is Verdict.INCONCLUSIVE

    means = [(cell, metric) for cell in asked if cell.is_mean for metric in asked[cell]]
    needed = {metric for mean, metric in means if is_open(mean, metric)}
    references = {
        metric: {cell: _reference(measured, metric, cell, rule) for cell in measured.measurements}
        for metric in {metric for metrics in asked.values() for metric in metrics}
    }
    groups = {
        metric: [
            (measurement, each.measurement if isinstance(each := of_cell[cell], Reference) else None)
            for cell, measurement in measured.measurements.items()
        ]
        for metric, of_cell in references.items()
    }
    found = {
        (cell, metric): compare(
            metric,
            measured.measurements[cell],
            references[metric][cell],
            group=groups[metric],
            tolerance=_tolerance(rule, metric, cell, [references[metric][cell]]),
            alpha=alpha,
            conditions=rule.conditions,
            hardware_key=rule.hardware_key,
            paired=rule.paired,
            degenerate_share=rule.degenerate_share,
        )
        for cell in cells
        for metric in asked[cell]
        if metric in needed or is_open(cell, metric)
    }
    for mean, metric in means:
        of = [cell for cell in cells if metric in asked[cell] and rule.counts_in_mean(cell)]
        if is_open(mean, metric):
            sides = dict(zip(measured.measurements, groups[metric], strict=True))
            check = compare_mean(
                mean,
                metric,
                [found[cell, metric] for cell in of],
                [cell.category for cell in of],
                [rounds_of(metric, *sides[cell], paired=rule.paired) for cell in of],
                tolerance=_tolerance(rule, metric, mean, [references[metric][cell] for cell in of]),
                alpha=alpha,
                paired=rule.paired,
            )
            found[mean, metric] = check
        else:
            check = decided[mean, metric]
        if check.verdict is Verdict.REGRESSION:
            for cell in of:
                if (cell, metric) in found:
                    found[cell, metric] = _at(found[cell, metric], rule.alpha)
    return {key: check for key, check in found.items() if is_open(*key)}


def _reference(measured: Measured, metric: str, cell: Cell, rule: Rule) -> Reference | NotComparable:
    if measured.references is None:
        return NotComparable(Verdict.NO_BASELINE, ("no baseline is stored for this target",))
    return measured.references.find(metric, cell, rule.hardware_key)


def _tolerance(rule: Rule, metric: str, cell: Cell, references: Sequence[Reference | NotComparable]) -> float:
    """The tolerance of a metric in a cell; no less than that of other hardware where a reference is from there."""
    own = rule.tolerance(metric, cell)
    elsewhere = any(
        isinstance(each, Reference) and each.hardware_key != rule.hardware_key for each in references
    )
    return max(own, rule.other_hardware_tolerance) if elsewhere else own


def _repeats(measurement: Measurement, metric: str) -> bool:
    """Whether more rounds tell no more: outputs that repeat exactly, as greedy ones of some engines do.

    What is not known then is how the prompts that were not asked would have changed.
    """
    if metric not in ACCEPTANCE:
        return False
    values = {figures.acceptance_length for figures in measurement.rounds}
    return len(measurement.rounds) > 1 and len(values) == 1 and None not in values


def _at(check: Check, alpha: float) -> Check:
    """The same check judged at another alpha."""
    return check if check.estimate is None else judged(check, check.estimate, alpha)
