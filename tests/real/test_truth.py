"""The plugin's steps and drafts are those of speculative decoding itself, prompt by prompt, on every real engine.

`oracle.py` works them out from the models alone. In float32 an engine and the oracle may still differ where the two
best tokens are as good as equal: prompts on whose way that happens are left out beforehand, by what the oracle
says of its own logits and never by what an engine answered.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench import engines
from pytest_speedbench.cells import Cell
from pytest_speedbench.data import Prompt, load
from pytest_speedbench.engines.base import Counters
from pytest_speedbench.engines.control import Control
from pytest_speedbench.load.conversation import prepare
from pytest_speedbench.load.plan import RoundPlan
from pytest_speedbench.load.records import RequestRecord
from pytest_speedbench.load.rounds import difference, record_round
from pytest_speedbench.metrics.acceptance import count_steps
from pytest_speedbench.metrics.measurement import PromptTally
from pytest_speedbench.settings.target import Sampling, Target
from pytest_speedbench.speed_bench import QUALITATIVE
from tests.metrics.records import build
from tests.real.targets import BATCH_SIZE, DRAFT_LENGTH, LOOKUP, installed, prompt_lookup, target, variables

OUTPUT_LENGTH = 64
SAMPLING = Sampling.exactly(OUTPUT_LENGTH)
Serve = Callable[[Target], str]
PER_CATEGORY = 2
"""Prompts of each of the 11 categories: 28 to 1092 tokens."""
FEWEST_PROMPTS = 12
AS_GOOD_AS_EQUAL = 1e-5
"""Lead in logits below which rounding may choose the token: float32 rounds these models' logits by 7e-7 (seen beside
float64), so that two engines may tell leads that differ by 3e-6."""
ORACLE = Path(__file__).with_name("oracle.py")
END_OF_SEQUENCE = 1
"""Of the tiny models. Told to ignore it, llama.cpp keeps it from being written, and the others write on after it."""


@dataclass(frozen=True)
class Truth:
    """What a prompt must yield."""

    steps: tuple[tuple[int, int], ...]
    """(drafted, accepted) tokens of every decode step."""
    tokens: tuple[int, ...]
    narrowest: float

    @property
    def drafted_steps(self) -> int:
        return sum(drafted > 0 for drafted, _ in self.steps)

    @property
    def drafted(self) -> int:
        return sum(drafted for drafted, _ in self.steps)

    @property
    def accepted(self) -> int:
        return sum(accepted for _, accepted in self.steps)

    @property
    def positions(self) -> tuple[int, ...]:
        """Steps in which the drafts up to each position were accepted."""
        return tuple(
            sum(accepted > position for _, accepted in self.steps) for position in range(DRAFT_LENGTH)
        )


@dataclass(frozen=True)
class Compared:
    """One prompt on both sides."""

    truth: Truth
    tally: PromptTally
    request: RequestRecord

    @property
    def counters(self) -> Counters:
        """What the engine counted for it."""
        assert self.request.counters is not None
        return self.request.counters


@dataclass(frozen=True)
class Found:
    """A measured round beside the truth."""

    prompts: Mapping[str, Compared]
    """By question id."""
    on_server: Counters | None
    """What the server counted for all of them together."""

    def differences(self, measured: Callable[[Compared], Any], true: Callable[[Truth], Any]) -> list[str]:
        """Prompts on which a measured value is not the true one, with both."""
        return [
            f"{question_id}: measured {measured(each)}, true {true(each.truth)}"
            for question_id, each in self.prompts.items()
            if measured(each) != true(each.truth)
        ]


def compare(what: Target, url: str, **how: Any) -> Found:
    """Measure one round, whose acceptance length must be the oracle's for the same prompts.

    Args:
        what: the target.
        url: a server that was launched for it.
        how: how the engine drafts, as `oracle.py` is told it.
    """
    engine = engines.load(what.engine)(what)
    control = Control(url)
    prompts = first_turns()
    generations = prepare(engine, control, prompts, SAMPLING).generations
    truths = ask_oracle(what, [list(generation.token_ids or ()) for generation in generations], **how)
    truth_of = {
        prompt.question_id: truth
        for prompt, truth in zip(prompts, truths, strict=True)
        if truth.narrowest >= AS_GOOD_AS_EQUAL
    }
    left_out = [prompt.question_id for prompt in prompts if prompt.question_id not in truth_of]
    assert len(truth_of) >= FEWEST_PROMPTS, f"rounding decides too many: {left_out}"
    prompts = tuple(prompt for prompt in prompts if prompt.question_id in truth_of)
    before = engine.server_counters(control)
    # llama.cpp's rounding depends on which requests share a batch
    cell = Cell(QUALITATIVE, "coding", 1 if what.engine == "llamacpp" else BATCH_SIZE)
    prepared = prepare(engine, control, prompts, SAMPLING)
    round_ = record_round(engine, control, prepared, RoundPlan(cell.batch_size))
    after = engine.server_counters(control)
    control.close()
    measurement = build(cell, what.method, [round_], prompts)
    assert measurement.problems == ()
    requests = {request.question_id: request for request in round_.requests}
    found = {
        tally.question_id: Compared(truth_of[tally.question_id], tally, requests[tally.question_id])
        for tally in measurement.prompts
    }
    assert found.keys() == truth_of.keys()
    steps = sum(len(truth.steps) for truth in truth_of.values())
    acceptance_length = len(found) * (OUTPUT_LENGTH - 1) / steps
    print(
        f"{what.name}: {len(found)} prompts, {steps} true steps, acceptance length {acceptance_length:.4f}; "
        f"left to rounding, and not sent: {', '.join(left_out) or 'none'}"
    )
    assert measurement.metrics["acceptance_length"] == acceptance_length
    return Found(found, None if before is None or after is None else difference(after, before))


def first_turns() -> tuple[Prompt, ...]:
    """Prompts of every category, with nothing to follow: what follows depends on the reply's text."""
    return tuple(
        Prompt(prompt.question_id, prompt.category, prompt.turns[:1])
        for prompt in load(QUALITATIVE, None, None, PER_CATEGORY).prompts
    )


def ask_oracle(what: Target, prompts: list[list[int]], **how: Any) -> list[Truth]:
    """Work prompts out, in an environment that has torch: llama.cpp's models are made from those of vLLM's."""
    engine = "vllm" if what.engine == "llamacpp" else what.engine
    there = installed(engine)
    question = {
        "target": str(there.models / "target"),
        "draft_model": str(there.models / "draft") if what.method == "draft_model" else None,
        "prompts": prompts,
        "output_length": OUTPUT_LENGTH,
        "draft_length": DRAFT_LENGTH,
        "lookup": LOOKUP,
        "unseen": 0,
        "within_output": False,
        "never": [],
    } | how
    with variables(engine):  # transformers does not run without them in SGLang's environment
        answer = subprocess.run(
            [str(there.python), str(ORACLE)],
            input=json.dumps(question),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return [
        Truth(tuple(map(tuple, told["steps"])), tuple(told["tokens"]), told["narrowest"])
        for told in json.loads(answer.stdout)
    ]


@pytest.mark.parametrize(
    ("engine", "how"),
    [
        pytest.param("vllm", {}, id="vllm"),
        # it shows a draft model what it shows an EAGLE head, which starts one token late
        pytest.param("sglang", {"unseen": 1}, id="sglang"),
        pytest.param("llamacpp", {"within_output": True, "never": [END_OF_SEQUENCE]}, id="llamacpp"),
    ],
)
def test_steps_of_a_draft_model_are_the_true_ones(engine: str, how: dict[str, Any], serve: Serve) -> None:
    drafting = target(engine, "draft_model")
    found = compare(drafting, serve(drafting), **how)
    writes_the_true_text(found, may_hold_back=engine == "llamacpp")
    assert found.differences(lambda each: each.tally.steps, lambda truth: len(truth.steps)) == []
    assert found.differences(lambda each: each.counters.accepted_tokens, lambda truth: truth.accepted) == []
    assert found.differences(lambda each: each.counters.drafted_tokens, lambda truth: truth.drafted) == []
    if (
        engine != "llamacpp"
    ):  # which tells of a request its steps, and of the server which of them had a draft
        assert found.differences(lambda each: each.tally.drafted_steps, lambda t: t.drafted_steps) == []
        assert found.differences(lambda each: each.tally.accepted_per_position, lambda t: t.positions) == []
    the_server_counted_all(found)


def test_drafts_of_prompt_lookup_are_the_true_ones_on_vllm(serve: Serve) -> None:
    """vLLM tells of each request the steps that had a draft, and of the server all steps there were.

    So the acceptance length of the whole is exact, and that of each prompt an upper bound.
    """
    looking_up = prompt_lookup(*LOOKUP)
    found = compare(looking_up, serve(looking_up), lookup=LOOKUP)
    writes_the_true_text(found)
    assert found.differences(lambda each: each.tally.drafted_steps, lambda truth: truth.drafted_steps) == []
    assert found.differences(lambda each: each.tally.accepted_per_position, lambda t: t.positions) == []
    assert found.differences(lambda each: each.counters.drafted_tokens, lambda truth: truth.drafted) == []
    the_server_counted_all(found)
    assert found.on_server is not None
    assert found.on_server.decode_steps == sum(len(each.truth.steps) for each in found.prompts.values())
    for each in found.prompts.values():
        told = count_steps("ngram", each.request.output_tokens, each.counters)
        assert told.steps == each.tally.steps
        assert told.steps <= len(each.truth.steps) <= told.steps + told.uncertain_steps


def writes_the_true_text(found: Found, may_hold_back: bool = False) -> None:
    """Token by token; where an output ends inside a character, llama.cpp holds its last ids back."""
    untold = {key for key, each in found.prompts.items() if each.request.token_ids is None}
    assert len(untold) < len(found.prompts) if may_hold_back else not untold
    told = {key: each for key, each in found.prompts.items() if key not in untold}
    written = replace(found, prompts=told)
    assert written.differences(lambda each: tuple(each.request.token_ids or ()), lambda t: t.tokens) == []


def the_server_counted_all(found: Found) -> None:
    """What a server counts of all requests together, where it does, is their true sum."""
    if found.on_server is None:
        return
    truths = [each.truth for each in found.prompts.values()]
    assert found.on_server.drafted_steps == sum(truth.drafted_steps for truth in truths)
    assert found.on_server.drafted_tokens == sum(truth.drafted for truth in truths)
    assert found.on_server.accepted_per_position == tuple(
        map(sum, zip(*(truth.positions for truth in truths), strict=True))
    )
