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
    decode_s: float
    """Seconds from the first to the last token, summed over requests."""
    elapsed_s: float
    """Seconds from sending to the last token, summed over requests."""

    @property
    def decode_tokens(self) -> int:
        """Output tokens that came from decode steps: all but each request's first, which prefill yields."""
        return self.output_tokens - self.requests


@dataclass(frozen=True)
class Measurement:
    """One cell, measured. Invalid where `problems` is not empty."""

    cell: Cell
    metrics: Mapping[str, float]
    """By metric name, units in `metrics.names.UNITS`; a metric that could not be measured is absent."""
    prompts: tuple[PromptTally, ...]
    per_position: Mapping[str, tuple[float, ...]]
    """`conditional_acceptance_rate` and `joint_acceptance_rate` by position, `histogram` of accepted drafts."""
    rounds: int
    sent: int
    finished: int
    failed: int
    round_output_tps: tuple[float, ...]
    missing: Mapping[str, str]
    """Why a metric is absent, in words for a person: metric name -> reason."""
    problems: tuple[str, ...] = ()
    """Why no verdict can be drawn from this: failed requests, inconsistent counters, degenerate output."""
    notes: tuple[str, ...] = ()
    """What a reader should know: counters' source, undetermined overshoot, repeated prompts."""
    counter_source: str | None = None
    tokenization: str = ""
    prompt_tokens: int = 0
    """Input tokens of all requests; a change betrays another tokenizer or chat template."""
