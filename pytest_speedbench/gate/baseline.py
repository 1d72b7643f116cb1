"""What a baseline holds, what may become one, and how a run's measurements are merged into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import BaselineError
from pytest_speedbench.metrics.measurement import Measurement, RoundFigures
from pytest_speedbench.settings.methods import method_of
from pytest_speedbench.speed_bench import SPLITS, categories_of

DEAD_DRAFTER = 1.02
"""Acceptance length below which drafting gains nothing, in tokens per step."""


@dataclass(frozen=True)
class Conditions:
    """How a run measured: what a later run is compared with, and what is printed where it differs."""

    date: str
    """ISO 8601."""
    plugin_version: str
    engine: str
    engine_version: str
    method: str
    draft_length: int
    temperature: float
    ignore_eos: bool
    seed: int
    output_length: int
    """Tokens."""
    dataset: str
    """`sample`, or where the prompts came from."""
    commit: str | None = None
    """Of the repository under test."""
    model: str | None = None
    draft_model: str | None = None
    engine_args: tuple[str, ...] = ()
    rounds: int = 1
    tokenization: str = ""
    counter_source: str | None = None

    def of(self, measurement: Measurement) -> Conditions:
        """These conditions with what only the measurement knows."""
        return replace(
            self,
            rounds=len(measurement.rounds),
            tokenization=measurement.tokenization,
            counter_source=measurement.counter_source,
        )


@dataclass(frozen=True)
class AcceptancePrompt:
    """One prompt's steps, summed over its requests; the counts are None where the engine counts per server only."""

    id: str
    digest: str
    requests: int
    tokens: int
    """Output tokens."""
    steps: int | None
    drafted: int | None
    """Steps that had a draft."""
    accepted: tuple[int, ...] | None
    """Per position."""


@dataclass(frozen=True)
class ThroughputPrompt:
    """One prompt of the batch, summed over its requests."""

    id: str
    digest: str
    requests: int
    tokens: int
    """Output tokens."""


@dataclass(frozen=True)
class AcceptanceCell:
    """The half of a cell that models and prompts decide, and no machine."""

    cell: Cell
    run: str
    acceptance_length: float
    drafted_acceptance_length: float | None
    conditional_acceptance_rate: tuple[float, ...]
    prompt_tokens: int
    """Input tokens of all requests."""
    round_acceptance_length: tuple[float, ...]
    """Of every round: how far it repeats where the engine counts per server only."""
    prompts: tuple[AcceptancePrompt, ...]


@dataclass(frozen=True)
class ThroughputCell:
    """The half of a cell that belongs to one hardware."""

    cell: Cell
    run: str
    output_tps: float
    user_tps: float | None
    step_latency_s: float | None
    """Mean over steps."""
    speedup: float | None
    rounds: tuple[RoundFigures, ...]
    """Every round that was measured."""
    prompts: tuple[ThroughputPrompt, ...]


_Cell = TypeVar("_Cell", AcceptanceCell, ThroughputCell)


@dataclass(frozen=True)
class Baseline:
    """Stored measurements of one target."""

    target: str
    runs: Mapping[str, Conditions] = field(default_factory=dict)
    acceptance: Mapping[str, AcceptanceCell] = field(default_factory=dict)
    """By cell id."""
    throughput: Mapping[str, Mapping[str, ThroughputCell]] = field(default_factory=dict)
    """By hardware key, then by cell id."""

    def hardware_of(self, cell_id: str) -> tuple[str, ...]:
        """Hardware on which a cell's throughput is stored, in alphabetical order."""
        return tuple(sorted(key for key, cells in self.throughput.items() if cell_id in cells))


def refuse(measurement: Measurement, method: str) -> None:
    """Keep what must never be compared with out of a baseline.

    Args:
        measurement: what is to be stored.
        method: how its tokens were drafted.

    Raises:
        BaselineError: the measurement has problems, no acceptance length (but for method `unknown`) or no output
            TPS (but for a client that was overloaded), or its drafter is dead.
    """
    cell = measurement.cell.id
    if measurement.problems:
        raise BaselineError(
            f"{cell}: not stored, the measurement is invalid: {'; '.join(measurement.problems)}"
        )
    needed = []
    drafts = method_of(method).drafts
    if drafts != "unknown":  # an endpoint of which so little is known can still be gated on its speed
        needed.append("acceptance_length")
    if drafts == "unknown" or not measurement.overload:  # a late client leaves the acceptance half as it is
        needed.append("output_tps")
    for metric in needed:
        if metric not in measurement.metrics:
            reason = measurement.missing.get(metric, "it was not measured")
            raise BaselineError(f"{cell}: not stored, {metric} is missing: {reason}")
    if drafts in ("never", "unknown"):
        return
    length = measurement.metrics["acceptance_length"]
    if length < DEAD_DRAFTER:
        raise BaselineError(
            f"{cell}: not stored, an acceptance length of {length:.4f} with method {method} is that of a dead drafter "
            f"(below {DEAD_DRAFTER}); check the draft model and its arguments, or measure with method none"
        )


def merge(
    target: str,
    baseline: Baseline | None,
    measurements: Sequence[Measurement],
    conditions: Conditions,
    hardware_key: str,
) -> Baseline:
    """Add and replace the cells that were measured, and keep all others.

    Numbers are rounded to what the file holds, so that the result equals what is read back from it.

    Args:
        target: name of the target.
        baseline: what is stored so far, or None.
        measurements: of one run.
        conditions: of that run.
        hardware_key: `Hardware.key` of what it ran on.

    Raises:
        BaselineError: a measurement that `refuse` refuses; nothing is merged then.
    """
    for measurement in measurements:
        refuse(measurement, conditions.method)
    old = baseline or Baseline(target)
    runs = dict(old.runs)
    acceptance = dict(old.acceptance)
    throughput = {key: dict(cells) for key, cells in old.throughput.items()}
    here = throughput.setdefault(hardware_key, {})
    for measurement in measurements:
        run = _run_of(runs, conditions.of(measurement))
        if "acceptance_length" in measurement.metrics:
            acceptance[measurement.cell.id] = _acceptance_cell(measurement, run)
        if "output_tps" in measurement.metrics:
            here[measurement.cell.id] = _throughput_cell(measurement, run)
    used = {cell.run for cell in acceptance.values()}
    used |= {cell.run for cells in throughput.values() for cell in cells.values()}
    return Baseline(
        target,
        {run: runs[run] for run in sorted(used, key=_run_number)},
        _in_grid_order(acceptance),
        {key: _in_grid_order(throughput[key]) for key in sorted(throughput) if throughput[key]},
    )


def rounded(value: float) -> float:
    """A number as a baseline file holds it: six significant digits."""
    return float(f"{value:.6g}")


def _acceptance_cell(measurement: Measurement, run: str) -> AcceptanceCell:
    drafted = measurement.metrics.get("drafted_acceptance_length")
    return AcceptanceCell(
        cell=measurement.cell,
        run=run,
        acceptance_length=rounded(measurement.metrics["acceptance_length"]),
        drafted_acceptance_length=None if drafted is None else rounded(drafted),
        conditional_acceptance_rate=tuple(
            map(rounded, measurement.per_position.get("conditional_acceptance_rate", ()))
        ),
        prompt_tokens=measurement.prompt_tokens,
        round_acceptance_length=tuple(
            rounded(figures.acceptance_length)
            for figures in measurement.rounds
            if figures.acceptance_length is not None
        ),
        prompts=tuple(
            AcceptancePrompt(
                tally.question_id,
                tally.digest,
                tally.requests,
                tally.output_tokens,
                tally.steps,
                tally.drafted_steps,
                tally.accepted_per_position,
            )
            for tally in sorted(measurement.prompts, key=lambda tally: tally.question_id)
        ),
    )


def _throughput_cell(measurement: Measurement, run: str) -> ThroughputCell:
    def optional(metric: str) -> float | None:
        value = measurement.metrics.get(metric)
        return None if value is None else rounded(value)

    return ThroughputCell(
        cell=measurement.cell,
        run=run,
        output_tps=rounded(measurement.metrics["output_tps"]),
        user_tps=optional("user_tps"),
        step_latency_s=optional("step_latency_s_mean"),
        speedup=optional("speedup"),
        rounds=tuple(_rounded_figures(figures) for figures in measurement.rounds),
        prompts=tuple(
            ThroughputPrompt(tally.question_id, tally.digest, tally.requests, tally.output_tokens)
            for tally in sorted(measurement.prompts, key=lambda tally: tally.question_id)
        ),
    )


def _rounded_figures(figures: RoundFigures) -> RoundFigures:
    values = {item.name: getattr(figures, item.name) for item in fields(figures)}
    return RoundFigures(**{name: None if value is None else rounded(value) for name, value in values.items()})


def _run_of(runs: dict[str, Conditions], conditions: Conditions) -> str:
    """The name of a run with these conditions, added where there is none; names of other runs never change."""
    for name, known in runs.items():
        if known == conditions:
            return name
    name = f"run-{max(map(_run_number, runs), default=0) + 1}"
    runs[name] = conditions
    return name


def _run_number(run: str) -> int:
    number = run.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def _in_grid_order(cells: Mapping[str, _Cell]) -> dict[str, _Cell]:
    return dict(sorted(cells.items(), key=lambda item: _place(item[1].cell)))


def _place(cell: Cell) -> tuple[int, int, int]:
    return SPLITS.index(cell.split), categories_of(cell.split).index(cell.category), cell.batch_size
