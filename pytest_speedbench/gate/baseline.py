"""What a run is compared with, what may become a baseline, and how a run's measurements are merged into one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import BaselineError
from pytest_speedbench.gate.check import Verdict
from pytest_speedbench.metrics.measurement import Measurement, PromptTally, RoundFigures
from pytest_speedbench.settings.methods import method_of
from pytest_speedbench.speed_bench import ACCEPTANCE, SPLITS, categories_of

DEAD_DRAFTER = 1.02
"""Acceptance length below which drafting gains nothing, in tokens per step."""
ACCEPTANCE_METRICS = ("acceptance_length", "drafted_acceptance_length")
"""Metrics that a baseline stores of the acceptance half of a cell."""
THROUGHPUT_METRICS = (
    "output_tps",
    "user_tps",
    "speedup",
    "step_latency_s_mean",
    "ttft_s_mean",
    "first_arrival_tokens",
    "tokens_per_arrival",
)
"""Metrics that a baseline stores of the throughput half of a cell."""


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
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables in force that can change what an engine does, secrets masked."""
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
            output_length=measurement.output_length or self.output_length,
        )


@dataclass(frozen=True)
class Reference:
    """A measurement to compare with: out of a baseline file, or of another target in the same run."""

    measurement: Measurement
    conditions: Conditions
    hardware_key: str
    """`Hardware.key` of what it was measured on."""


@dataclass(frozen=True)
class NotComparable:
    """Why there is no comparison, and what the verdict is then."""

    verdict: Verdict
    reasons: tuple[str, ...]
    """Reasons for a person to read."""
    across_machines: bool = False
    """Whether the hardware is all that stands in the way."""


class References(Protocol):
    """Where references come from: `Baseline` or `OtherTarget`."""

    def find(self, metric: str, cell: Cell, hardware_key: str) -> Reference | NotComparable:
        """What a metric of a cell is compared with.

        Args:
            metric: one of `speed_bench.GATED`.
            cell: not a mean.
            hardware_key: `Hardware.key` of this run.
        """
        ...


@dataclass(frozen=True)
class Baseline:
    """Stored measurements of one target, each reduced to what is compared."""

    target: str
    acceptance: Mapping[str, Mapping[str, Reference]] = field(default_factory=dict)
    """By hardware key, then by cell id."""
    throughput: Mapping[str, Mapping[str, Reference]] = field(default_factory=dict)
    """By hardware key, then by cell id."""

    def find(self, metric: str, cell: Cell, hardware_key: str) -> Reference | NotComparable:
        """As `References.find`. Acceptance of other hardware, saved last, stands in where there is none of this."""
        filed = self.acceptance if metric in ACCEPTANCE else self.throughput
        found = filed.get(hardware_key, {}).get(cell.id)
        elsewhere = [cells[cell.id] for cells in filed.values() if cell.id in cells]
        if found is None and elsewhere and metric not in ACCEPTANCE:
            return _on_other_hardware([each.hardware_key for each in elsewhere], hardware_key)
        if found is None and elsewhere:
            found = max(elsewhere, key=lambda each: each.conditions.date)
        if found is None:
            return NotComparable(Verdict.NO_BASELINE, (f"the baseline of {self.target} has no {cell.id}",))
        if metric not in found.measurement.metrics:
            return NotComparable(Verdict.NO_BASELINE, (f"the baseline has no {metric} for {cell.id}",))
        return found


@dataclass(frozen=True)
class OtherTarget:
    """Another target's measurements of the same run, as they are."""

    name: str
    measured: Mapping[Cell, Reference]

    def find(self, metric: str, cell: Cell, hardware_key: str) -> Reference | NotComparable:
        """As `References.find`. What was not measured of the other target is invalid, for the reason it has."""
        found = self.measured.get(cell)
        if found is None:
            return NotComparable(Verdict.INVALID, (f"{self.name} was not measured in {cell.id}",))
        if found.measurement.problems:
            return NotComparable(
                Verdict.INVALID, tuple(f"{self.name}: {problem}" for problem in found.measurement.problems)
            )
        if metric not in found.measurement.metrics:
            why = found.measurement.missing.get(metric, "it was not measured")
            return NotComparable(
                Verdict.INVALID, (f"{metric} of {self.name} is missing in {cell.id}: {why}",)
            )
        if metric not in ACCEPTANCE and found.hardware_key != hardware_key:
            return _on_other_hardware([found.hardware_key], hardware_key)
        return found


def _on_other_hardware(known: Iterable[str], hardware_key: str) -> NotComparable:
    reason = (
        f"throughput of this cell is stored for {' and '.join(sorted(known))}, and this is {hardware_key}"
    )
    return NotComparable(Verdict.INCOMPARABLE, (reason,), across_machines=True)


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
            raise BaselineError(
                f"{cell}: not stored, {metric} is missing: {_why_missing(measurement, metric)}"
            )
    if drafts in ("never", "unknown"):
        return
    length = measurement.metrics["acceptance_length"]
    if length < DEAD_DRAFTER:
        raise BaselineError(
            f"{cell}: not stored, an acceptance length of {length:.4f} with method {method} is that of a dead drafter "
            f"(below {DEAD_DRAFTER}); check the draft model and its arguments, or measure with method none"
        )


@dataclass(frozen=True)
class Merged:
    """A baseline with a run's measurements in it, and what was stored of them."""

    baseline: Baseline
    acceptance: tuple[str, ...]
    """Ids of the cells whose acceptance was stored."""
    throughput: tuple[str, ...]
    """Ids of the cells whose throughput was stored."""
    left_out: Mapping[str, str]
    """Why half of a cell was not stored: cell id -> `throughput: the load client was the bottleneck`."""

    @property
    def omissions(self) -> tuple[str, ...]:
        """What was not stored, a line for each reason: `not stored of 11 cells, throughput: why`."""
        cells: dict[str, list[str]] = {}
        for cell_id, reason in self.left_out.items():
            cells.setdefault(reason, []).append(cell_id)
        return tuple(
            f"not stored of {ids[0] if len(ids) == 1 else f'{len(ids)} cells'}, {reason}"
            for reason, ids in cells.items()
        )


def merge(
    target: str,
    baseline: Baseline | None,
    measurements: Sequence[Measurement],
    conditions: Conditions,
    hardware_key: str,
) -> Merged:
    """Add and replace the cells that were measured on this hardware, and keep all others.

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
    acceptance = {key: dict(cells) for key, cells in old.acceptance.items()}
    throughput = {key: dict(cells) for key, cells in old.throughput.items()}
    stored: dict[str, list[str]] = {"acceptance": [], "throughput": []}
    left_out = {}
    for measurement in measurements:
        cell_id = measurement.cell.id
        for half, filed, metric in (
            ("acceptance", acceptance, "acceptance_length"),
            ("throughput", throughput, "output_tps"),
        ):
            if metric not in measurement.metrics:
                left_out[cell_id] = f"{half}: {_why_missing(measurement, metric)}"
                continue
            reduced = acceptance_half(measurement) if half == "acceptance" else throughput_half(measurement)
            reference = Reference(reduced, conditions.of(measurement), hardware_key)
            filed.setdefault(hardware_key, {})[cell_id] = reference
            stored[half].append(cell_id)
    return Merged(
        Baseline(target, _in_order(acceptance), _in_order(throughput)),
        tuple(stored["acceptance"]),
        tuple(stored["throughput"]),
        left_out,
    )


def dirty_warning(commit: str | None) -> str | None:
    """What a save has to warn of where it was measured with changes that are in no commit; None where it was not."""
    if commit is None or not commit.endswith("-dirty"):
        return None
    return f"measured with uncommitted changes ({commit}): no one can check out what this baseline is of"


def rounded(value: float) -> float:
    """A number as a baseline file holds it: six significant digits."""
    return float(f"{value:.6g}")


def acceptance_half(measurement: Measurement) -> Measurement:
    """A measurement reduced to what its acceptance is compared by."""
    rates = measurement.per_position.get("conditional_acceptance_rate", ())
    return replace(
        _reduced(measurement, ACCEPTANCE_METRICS),
        per_position={"conditional_acceptance_rate": tuple(map(rounded, rates))} if rates else {},
        rounds=tuple(
            RoundFigures(None, None, _rounded(figures.acceptance_length), None)
            for figures in measurement.rounds
        ),
        prompt_tokens=measurement.prompt_tokens,
    )


def throughput_half(measurement: Measurement) -> Measurement:
    """A measurement reduced to what its throughput is compared by."""
    return replace(
        _reduced(measurement, THROUGHPUT_METRICS),
        rounds=tuple(
            RoundFigures(**{item.name: _rounded(getattr(figures, item.name)) for item in fields(figures)})
            for figures in measurement.rounds
        ),
    )


def _reduced(measurement: Measurement, metrics: Iterable[str]) -> Measurement:
    return stored_measurement(
        measurement.cell,
        {name: rounded(measurement.metrics[name]) for name in metrics if name in measurement.metrics},
        sorted(
            (replace(tally, latched=None) for tally in measurement.prompts),
            key=lambda tally: tally.question_id,
        ),
    )


def stored_measurement(
    cell: Cell, metrics: Mapping[str, float], prompts: Sequence[PromptTally]
) -> Measurement:
    """A measurement that was sound when it was stored, without its rounds.

    Args:
        cell: what was measured.
        metrics: by name.
        prompts: all of them, sorted by id.
    """
    requests = sum(tally.requests for tally in prompts)
    return Measurement(
        cell=cell,
        metrics=metrics,
        prompts=tuple(prompts),
        per_position={},
        rounds=(),
        sent=requests,
        finished=requests,
        failed=0,
        missing={},
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else rounded(value)


def _why_missing(measurement: Measurement, metric: str) -> str:
    return measurement.missing.get(metric, "it was not measured")


def _in_order(filed: Mapping[str, Mapping[str, Reference]]) -> dict[str, dict[str, Reference]]:
    """By hardware in alphabetical order, then by place in the grid."""
    return {
        key: dict(sorted(filed[key].items(), key=lambda item: _place(item[1].measurement.cell)))
        for key in sorted(filed)
        if filed[key]
    }


def _place(cell: Cell) -> tuple[int, int, int]:
    return SPLITS.index(cell.split), categories_of(cell.split).index(cell.category), cell.batch_size
