"""A measurement: all metrics of one cell from one run, with what is needed to compare it prompt by prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_speedbench.cells import Cell


@dataclass(frozen=True)
class PromptTally:
    """One prompt's share of a measurement: sums over its turns, repeats and rounds."""

    question_id: str
    digest: str
    """`Prompt.digest` of the text that was sent."""
    requests: int
    """Turns x repeats x rounds."""
    output_tokens: int
    steps: int | None
    """Decode steps of the target model, drafted or not; None where the engine counts per server only."""
    drafted_steps: int | None
    accepted_per_position: tuple[int, ...] | None
    steps_exact: bool = True
    """False where `steps` is a lower bound, so that acceptance length by them is an upper one: the engine reports the
    steps of this prompt that had a draft, and those of all prompts together at best."""
    latched: int | None = None
    """Requests whose output repeats itself (`metrics.degenerate`); None where the engine sends no token ids."""

    @property
    def decode_tokens(self) -> int:
        """Output tokens that came from decode steps: all but each request's first, which prefill yields."""
        return self.output_tokens - self.requests


@dataclass(frozen=True)
class RoundFigures:
    """What one round of a cell came to: the replicate that throughput is judged by. None: not measured."""

    output_tps: float | None
    user_tps: float | None
    acceptance_length: float | None
    step_latency_s: float | None
    """Mean over steps."""
    speedup: float | None = None
    other_processes_busy: float | None = None
    """Share of the processors' time that went to neither engine nor client."""


@dataclass(frozen=True)
class Measurement:
    """One cell, measured. Invalid where `problems` is not empty."""

    cell: Cell
    metrics: Mapping[str, float]
    """By metric name, units in `catalogue.UNITS`; a metric that could not be measured is absent."""
    prompts: tuple[PromptTally, ...]
    per_position: Mapping[str, tuple[float, ...]]
    """`conditional_acceptance_rate` and `joint_acceptance_rate` by position, `histogram` of accepted drafts."""
    rounds: tuple[RoundFigures, ...]
    """In the order in which they were measured."""
    sent: int
    finished: int
    failed: int
    missing: Mapping[str, str]
    """Why a metric is absent, in words for a person: metric name -> reason."""
    problems: tuple[str, ...] = ()
    """Why no verdict can be drawn from this: failed requests, inconsistent counters."""
    overload: str | None = None
    """Why nothing that is timed was measured: the client was busy with itself. Counters do not mind."""
    notes: tuple[str, ...] = ()
    """What a reader should know: counters' source, undetermined overshoot, repeated prompts."""
    counter_source: str | None = None
    random_control: Mapping[str, float] | None = None
    """Metrics of one round on random tokens of the same input lengths; None where it was not asked for."""
    tokenization: str = ""
    estimated: bool = False
    """Whether stream events were taken for decode steps, so that acceptance length is an estimate: `~2.65 estimated`."""
    output_length: int | None = None
    """Output tokens of each request at most, where a test asks for another number than the run."""
    prompt_tokens: int = 0
    """Input tokens of all requests; a change betrays another tokenizer or chat template."""
