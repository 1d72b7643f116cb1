"""Runs of SPEED-Bench's shape with a known change, from recorded steps per prompt, for `verdicts.py`.

Steps per prompt are those of `baselines/reference-draft_model-k3.yaml`: real counts of the reference engine, 8
prompts in each of 11 categories. A simulated category has 80 prompts, each with the tokens per step of a prompt
drawn from the recorded 8. Everything that varies from round to round is drawn anew for each run, and so is the
baseline.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pytest_speedbench.cells import MEAN, Cell
from pytest_speedbench.gate.baseline import Baseline, Conditions, Reference, merge
from pytest_speedbench.gate.sequential import Measured, Rule
from pytest_speedbench.gate.store import load
from pytest_speedbench.metrics.measurement import Measurement, PromptTally, RoundFigures
from pytest_speedbench.settings.options import BY_FIELD
from pytest_speedbench.speed_bench import DOMAINS, QUALITATIVE, prompts_per_category

if TYPE_CHECKING:
    from typing import TypeAlias

    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

RECORDED = Path(__file__).resolve().parent.parent / "baselines" / "reference-draft_model-k3.yaml"
PROMPTS = prompts_per_category(QUALITATIVE)
TOKENS = 1024
"""Output tokens of every request."""
BATCH_SIZES = (1, 32, 128)
METRICS = ("acceptance_length", "output_tps", "user_tps")
CHECKS = len(METRICS) * len(BATCH_SIZES) * (len(DOMAINS) + 1)
"""99 of single categories and 9 of means."""
ROUNDS, MAX_ROUNDS = 3, 9
BASELINE_ROUNDS = 9
"""Saving measures the most rounds: it is done once and compared with often."""
STEP_S = 0.02
PREFILL = 0.05
"""Part of the baseline's time that is not decoding."""
TOLERANCES = {"acceptance_length": (0.03, 0.01), "output_tps": (0.05, 0.03), "user_tps": (0.05, 0.03)}
"""Of a category and of a mean: the defaults."""
HARDWARE = "simulated x 1"
CONDITIONS = Conditions(
    date="2026-11-23T00:00:00+00:00",
    plugin_version="0.2.0",
    engine="simulated",
    engine_version="0",
    method="draft_model",
    draft_length=3,
    temperature=0.0,
    ignore_eos=True,
    seed=0,
    output_length=TOKENS,
    dataset="simulated",
)


@dataclass(frozen=True)
class Scenario:
    """What is done to a run, and how noisy it and its baseline are."""

    acceptance_loss: Mapping[str, float] = field(default_factory=dict)
    """True relative loss of acceptance length, by category."""
    slower: Mapping[str, float] = field(default_factory=dict)
    """Step latency over the baseline's, by category; 1 where it is not named."""
    acceptance_noise: float = 0.01
    """Standard deviation of a category's acceptance length in one pass, as a logarithm."""
    diverging: float = 1.0
    """Share of prompts whose output changes in a pass; they carry all of `acceptance_noise`."""
    round_noise: float = 0.02
    """Standard deviation of a round's step latency, as a logarithm."""
    together: float = 0.0
    """Share of the variance of `round_noise` that a round of all cells of a batch has in common."""
    hiccups: float = 0.0
    """Share of rounds, of run and baseline, in which everything takes 1 / 0.85 as long."""
    unlike: float = 0.0
    """Standard deviation of the logarithm of the cells' `round_noise`."""
    noisier_run: float = 1.0
    """Round noise of the run over that of its baseline."""
    drift: float = 0.0
    """Standard deviation of the logarithm by which a whole run is slower or faster: another boot, another neighbour."""
    tolerances: Mapping[str, tuple[float, float]] = field(default_factory=lambda: TOLERANCES)

    def rule(self) -> Rule:
        """What such a run is judged by."""
        return Rule(
            alpha=0.01,
            checks=CHECKS,
            rounds=ROUNDS,
            max_rounds=MAX_ROUNDS,
            tolerance=lambda metric, cell: self.tolerances[metric][cell.is_mean],
            conditions=CONDITIONS,
            hardware_key=HARDWARE,
            other_hardware_tolerance=0.0,  # there is none
            degenerate_share=BY_FIELD["degenerate"].default,
        )


@dataclass(frozen=True)
class Rounds:
    """One side of one batch: every round of its 11 cells."""

    steps: NDArray[np.int64]
    """Of each prompt; shape (cells, prompts, rounds)."""
    step_s: Floats
    """Seconds per step; shape (cells, rounds)."""

    @property
    def acceptance_length(self) -> Floats:
        """Shape (cells, rounds)."""
        steps: Floats = self.steps.sum(axis=1).astype(np.float64)
        return PROMPTS * (TOKENS - 1) / steps

    @property
    def user_tps(self) -> Floats:
        """Shape (cells, rounds)."""
        return self.acceptance_length / self.step_s


class Batch:
    """One batch size of one simulated run, which gives its rounds as `judge_group` asks for them.

    Args:
        scenario: what happens.
        batch_size: of the cells.
        random: what is drawn from.
        drift: how many times as long everything takes as in the baseline, in all batches of the run.
    """

    def __init__(
        self, scenario: Scenario, batch_size: int, random: np.random.Generator, drift: float = 1.0
    ) -> None:
        self.cells = [Cell(QUALITATIVE, category, batch_size) for category in DOMAINS]
        self.mean = Cell(QUALITATIVE, MEAN, batch_size)
        self.asked = {cell: METRICS for cell in (*self.cells, self.mean)}
        recorded = np.array([tokens_per_step(category) for category in DOMAINS])
        drawn = random.integers(0, recorded.shape[1], (len(DOMAINS), PROMPTS))
        steps = (TOKENS - 1) / np.take_along_axis(recorded, drawn, axis=1)
        noise = np.exp(scenario.unlike * random.standard_normal((len(DOMAINS), 1)))
        before = _rounds(scenario, random, steps, np.full_like(noise, STEP_S), noise, BASELINE_ROUNDS)
        losses = np.array([scenario.acceptance_loss.get(category, 0.0) for category in DOMAINS])
        slower = np.array([[scenario.slower.get(category, 1.0)] for category in DOMAINS])
        self.run = _rounds(
            scenario,
            random,
            steps / (1 - losses)[:, None],
            STEP_S * slower * drift,
            noise * scenario.noisier_run,
            MAX_ROUNDS,
        )
        self.before = before
        self._typical_steps = steps.sum(axis=1)
        self.baseline = self._baseline()
        self._measured: dict[Cell, Measurement] = {}

    def measure(self, cells: Collection[Cell], rounds: int) -> Measured:
        """As `judge_group` wants it."""
        for cell in cells:
            self._measured[cell] = self._measurement(cell, self.run, rounds)
        return Measured(dict(self._measured), self.baseline)

    def output_tps(self, side: Rounds) -> Floats:
        """Output tokens per second; shape (cells, rounds)."""
        decode_s: Floats = side.steps.sum(axis=1) * side.step_s
        prefill_s: Floats = PREFILL / (1 - PREFILL) * self._typical_steps[:, None] * STEP_S
        return self.cells[0].batch_size * PROMPTS * TOKENS / (decode_s + prefill_s)

    def _baseline(self) -> Baseline:
        measurements = [self._measurement(cell, self.before, BASELINE_ROUNDS) for cell in self.cells]
        return merge("simulated", None, measurements, CONDITIONS, HARDWARE).baseline

    def _measurement(self, cell: Cell, side: Rounds, rounds: int) -> Measurement:
        index = self.cells.index(cell)
        figures = {
            "output_tps": self.output_tps(side)[index, :rounds],
            "user_tps": side.user_tps[index, :rounds],
            "acceptance_length": side.acceptance_length[index, :rounds],
            "step_latency_s": side.step_s[index, :rounds],
        }
        steps = side.steps[index, :, :rounds].sum(axis=1)
        return Measurement(
            cell=cell,
            metrics={
                "acceptance_length": rounds * PROMPTS * (TOKENS - 1) / float(steps.sum()),
                "output_tps": float(np.median(figures["output_tps"])),
                "user_tps": float(np.median(figures["user_tps"])),
                "step_latency_s_mean": float(np.median(figures["step_latency_s"])),
            },
            prompts=tuple(
                PromptTally(f"{number:03}", "0" * 16, rounds, rounds * TOKENS, count, None, None)
                for number, count in enumerate(steps.tolist())
            ),
            per_position={},
            rounds=tuple(
                RoundFigures(**{name: float(values[number]) for name, values in figures.items()})
                for number in range(rounds)
            ),
            sent=rounds * PROMPTS,
            finished=rounds * PROMPTS,
            failed=0,
            missing={},
        )


def _rounds(
    scenario: Scenario, random: np.random.Generator, steps: Floats, step_s: Floats, noise: Floats, rounds: int
) -> Rounds:
    """Draw one side of a batch.

    Args:
        scenario: of the run.
        random: what is drawn from.
        steps: of each prompt, as they are on average; shape (cells, prompts).
        step_s: seconds per step, as they are on average; shape (cells, 1).
        noise: of each cell, relative to the scenario's; shape (cells, 1).
        rounds: how many.
    """
    shape = (*steps.shape, rounds)
    spread = scenario.acceptance_noise * math.sqrt(PROMPTS / scenario.diverging)
    change = spread * random.standard_normal(shape) - spread**2 / 2  # whose exponential is 1 on average
    if scenario.diverging < 1:
        change = np.where(random.random(shape) < scenario.diverging, change, 0.0)
    own = math.sqrt(1 - scenario.together) * random.standard_normal((len(steps), rounds))
    common = math.sqrt(scenario.together) * random.standard_normal(rounds) if scenario.together else 0.0
    latency = scenario.round_noise * noise * (own + common)
    hiccups = random.random((len(steps), rounds)) < scenario.hiccups
    counts = np.rint(steps[:, :, None] * np.exp(change)).astype(np.int64)
    return Rounds(np.clip(counts, 1, TOKENS - 1), step_s * np.exp(latency) / np.where(hiccups, 0.85, 1.0))


@cache
def tokens_per_step(category: str) -> tuple[float, ...]:
    """Of each recorded prompt of a category."""
    found = _recorded().find("acceptance_length", Cell(QUALITATIVE, category, 1), "")
    assert isinstance(found, Reference)
    return tuple(tally.decode_tokens / tally.steps for tally in found.measurement.prompts if tally.steps)


@cache
def _recorded() -> Baseline:
    baseline = load(RECORDED)
    assert baseline is not None
    return baseline
