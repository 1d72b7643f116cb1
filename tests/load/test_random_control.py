"""The random control: the same number of prompts and tokens, and nothing else of the real ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_speedbench.data import load
from pytest_speedbench.engines.control import Control
from pytest_speedbench.engines.launch.process import start
from pytest_speedbench.engines.reference.engine import ReferenceEngine
from pytest_speedbench.errors import SettingsError
from pytest_speedbench.load.conversation import Prepared, prepare
from pytest_speedbench.load.driver import run_round
from pytest_speedbench.load.plan import RoundPlan
from pytest_speedbench.load.random_control import random_control
from pytest_speedbench.settings.target import Sampling, Target
from tests.load.stub_engine import StubEngine, prompts, sampling

TARGET = Target("reference", "reference", "draft_model", 3)
NOBODY = Control("http://127.0.0.1:9")


def stub_prompts(count: int = 20, turns: int = 1) -> Prepared:
    return prepare(StubEngine(), NOBODY, prompts(count, turns), sampling())


def lengths(prepared: Prepared) -> list[int]:
    return [len(generation.token_ids or ()) for generation in prepared.generations]


def test_as_many_prompts_of_as_many_tokens() -> None:
    real = stub_prompts()
    control = random_control(StubEngine(), real)

    assert lengths(control) == lengths(real)
    assert control.sampling == real.sampling
    assert [json.loads(call.body)["token_ids"] for call in control.openings] == [
        list(generation.token_ids or ()) for generation in control.generations
    ]


def test_only_ids_that_the_real_prompts_hold() -> None:
    real = stub_prompts()
    known = {token for generation in real.generations for token in generation.token_ids or ()}
    drawn = {
        token
        for generation in random_control(StubEngine(), real).generations
        for token in generation.token_ids or ()
    }

    assert drawn <= known
    assert len(drawn) > 0.9 * len(known)


def test_rare_ids_are_drawn_as_often_as_common_ones() -> None:
    real = stub_prompts(2000)
    drawn = [
        token
        for generation in random_control(StubEngine(), real).generations
        for token in generation.token_ids or ()
    ]
    known = set(drawn)
    expected = len(drawn) / len(known)

    for token in known:
        assert abs(drawn.count(token) - expected) < 6 * expected**0.5


def test_one_seed_gives_the_same_prompts_and_another_gives_others() -> None:
    real = stub_prompts()

    assert random_control(StubEngine(), real, 1) == random_control(StubEngine(), real, 1)
    assert (
        random_control(StubEngine(), real, 1).generations != random_control(StubEngine(), real, 2).generations
    )


def test_one_turn_is_left_of_a_conversation() -> None:
    control = random_control(StubEngine(), stub_prompts(5, turns=3))
    assert [len(prompt.turns) for prompt in control.prompts] == [1] * 5


def test_no_digest_is_that_of_a_real_prompt() -> None:
    real = stub_prompts()
    control = random_control(StubEngine(), real)

    assert [prompt.question_id for prompt in control.prompts] == [
        prompt.question_id for prompt in real.prompts
    ]
    assert len({prompt.digest for prompt in (*real.prompts, *control.prompts)}) == 2 * len(real.prompts)
    assert control.note == "the prompts are random token ids, not text"


def test_prompts_that_go_out_as_messages_have_no_control() -> None:
    engine = StubEngine(tokenizes=False)
    with pytest.raises(SettingsError) as refused:
        random_control(engine, prepare(engine, NOBODY, prompts(2), sampling()))
    assert str(refused.value) == (
        "random-token prompts cannot be measured on engine stub: prompts go out to it as chat messages, not as token "
        "ids; leave the random control out, or use an engine that takes token ids"
    )


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    logs: Path = tmp_path_factory.mktemp("logs")
    with start(ReferenceEngine(TARGET), TARGET, logs) as server:
        yield server.url


def test_the_reference_engine_takes_both(url: str) -> None:
    engine = ReferenceEngine(TARGET)
    control = Control(url)
    try:
        real = prepare(
            engine,
            control,
            load("throughput_1k", None, ("mixed",)).prompts,
            Sampling.exactly(48),
        )
    finally:
        control.close()
    rounds = [
        run_round(engine, url, prompts, RoundPlan(4)) for prompts in (real, random_control(engine, real))
    ]

    for round_ in rounds:
        assert round_.failed == 0
        assert {record.output_tokens for record in round_.requests} == {48}
    by_prompt = [{record.question_id: record for record in round_.requests} for round_ in rounds]
    for question_id, record in by_prompt[0].items():
        other = by_prompt[1][question_id]
        assert other.prompt_tokens == record.prompt_tokens
        assert other.token_ids != record.token_ids
