"""Builds records the way a server with known behaviour would leave them behind."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_speedbench.cells import Cell
from pytest_speedbench.data.prompts import Prompt
from pytest_speedbench.engines.base import Counters
from pytest_speedbench.load.records import Arrivals, RequestRecord, RoundRecord
from pytest_speedbench.metrics.combine_rounds import combine
from pytest_speedbench.metrics.measurement import Measurement
from pytest_speedbench.metrics.one_round import measure_round

DRAFT_LENGTH = 3


def counters(
    accepted_by_step: Sequence[int], draft_length: int = DRAFT_LENGTH, source: str = "response"
) -> Counters:
    """What an engine counts when each of its steps has a full draft."""
    return Counters(
        source=source,
        drafted_steps=len(accepted_by_step),
        drafted_tokens=len(accepted_by_step) * draft_length,
        accepted_tokens=sum(accepted_by_step),
        accepted_per_position=tuple(
            sum(accepted >= position for accepted in accepted_by_step)
            for position in range(1, draft_length + 1)
        ),
        draft_length=draft_length,
    )


def request(
    question_id: str = "q1",
    accepted_by_step: Sequence[int] = (2, 0, 3),
    *,
    turn: int = 0,
    repeat: int = 0,
    sent_s: float = 0.0,
    ttft_s: float = 0.5,
    step_s: float = 0.1,
    overshoot: int = 0,
    counted: bool = True,
) -> RequestRecord:
    """A request that finished: prefill yields one token, each step 1 + its accepted drafts.

    Args:
        question_id: whose prompt.
        accepted_by_step: accepted drafts of each decode step.
        turn: counted from 0.
        repeat: reuse of the prompt.
        sent_s: when it was sent.
        ttft_s: seconds to the first token.
        step_s: seconds per step.
        overshoot: tokens of the last step that are past the end of the output.
        counted: whether the response carries counters.
    """
    tokens = [1 + accepted for accepted in accepted_by_step]
    if tokens:
        tokens[-1] -= overshoot
    moments = [sent_s + ttft_s + step_s * number for number in range(len(tokens) + 1)]
    return RequestRecord(
        question_id=question_id,
        turn=turn,
        repeat=repeat,
        sent_s=sent_s,
        ended_s=moments[-1],
        arrivals=Arrivals.of(zip(moments, [1, *tokens], strict=True)),
        output_tokens=1 + sum(tokens),
        prompt_tokens=10,
        finish_reason="length",
        token_ids=range(1 + sum(tokens)),
        counters=counters(accepted_by_step) if counted else None,
    )


def round_of(
    *requests: RequestRecord, batch_size: int = 1, server_counters: Counters | None = None
) -> RoundRecord:
    return RoundRecord(batch_size, requests, "engine", server_counters)


def prompt(question_id: str = "q1", turns: int = 1) -> Prompt:
    return Prompt(question_id, "coding", tuple(f"turn {turn} of {question_id}" for turn in range(turns)))


def build(cell: Cell, method: str, rounds: Sequence[RoundRecord], prompts: Sequence[Prompt]) -> Measurement:
    """The measurement of a cell from the records of all its rounds."""
    return combine(cell, method, [measure_round(method, each, prompts) for each in rounds])
