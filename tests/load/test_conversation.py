from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest

from pytest_speedbench.engines.base import HttpCall, Message
from pytest_speedbench.engines.control import Control
from pytest_speedbench.errors import DataError, EngineError
from pytest_speedbench.load.conversation import next_call, prepare, warm_up
from tests.load.stub_engine import StubEngine, prompts, sampling, spoken, spoken_to

CONTROL = Control("http://127.0.0.1:9")  # the discard port: nothing in these tests calls it


def asked(call: HttpCall) -> str:
    return spoken_to(json.loads(call.body))


class FakeTokenizer:
    """Stands in for a tokenizer of `transformers`, which the tests' environment does not have."""

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> list[int]:
        assert options == {"tokenize": True, "add_generation_prompt": True, "return_dict": False}
        return list(spoken([Message(**message) for message in messages]).encode())


def install_transformers(monkeypatch: pytest.MonkeyPatch, known: str) -> None:
    class AutoTokenizer:
        @staticmethod
        def from_pretrained(model: str) -> FakeTokenizer:
            if model != known:
                raise OSError(f"{model} is not a local folder\nand no model identifier either")
            return FakeTokenizer()

    module = ModuleType("transformers")
    module.AutoTokenizer = AutoTokenizer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", module)


def test_first_turns_are_tokenized_by_the_engine_and_encoded() -> None:
    prepared = prepare(StubEngine(), CONTROL, prompts(3, turns=2), sampling())

    assert prepared.tokenization == "engine"
    assert [asked(call) for call in prepared.openings] == [
        "user:question 0.0",
        "user:question 1.0",
        "user:question 2.0",
    ]
    assert all(json.loads(call.body)["messages"] is None for call in prepared.openings)


def test_prompts_are_tokenized_side_by_side() -> None:
    together = threading.Barrier(4, timeout=10)

    class Slow(StubEngine):
        def tokenize(self, control: Control, messages: Sequence[Message]) -> tuple[int, ...] | None:
            if threading.current_thread() is not threading.main_thread():
                together.wait()
            return super().tokenize(control, messages)

    assert len(prepare(Slow(), CONTROL, prompts(5), sampling()).openings) == 5


def test_the_model_s_own_tokenizer_where_the_engine_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    install_transformers(monkeypatch, known="org/model")
    prepared = prepare(StubEngine(tokenizes=False), CONTROL, prompts(2), sampling(), model="org/model")
    assert (prepared.tokenization, prepared.note) == ("transformers", "")
    assert prepared.generations[1].token_ids == tuple(b"user:question 1.0")


def test_chat_messages_where_there_is_no_tokenizer_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    prepared = prepare(StubEngine(tokenizes=False), CONTROL, prompts(1), sampling(), model="org/model")
    assert (prepared.tokenization, prepared.note) == ("messages", "")
    assert prepared.generations[0].token_ids is None
    assert prepared.generations[0].messages == (Message("user", "question 0.0"),)


def test_a_tokenizer_that_cannot_be_loaded_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    install_transformers(monkeypatch, known="org/model")
    prepared = prepare(StubEngine(tokenizes=False), CONTROL, prompts(1), sampling(), model="org/typo")
    assert prepared.tokenization == "messages"
    assert prepared.note == (
        "the tokenizer of org/typo could not be used, chat messages went out instead: "
        "org/typo is not a local folder"
    )


def test_a_failing_tokenizer_of_the_engine_is_an_error() -> None:
    class Failing(StubEngine):
        def tokenize(self, control: Control, messages: Sequence[Message]) -> tuple[int, ...] | None:
            raise EngineError("POST /tokenize answered 500")

    with pytest.raises(EngineError, match="answered 500"):
        prepare(Failing(), CONTROL, prompts(1), sampling())


def test_no_prompts_are_an_error() -> None:
    with pytest.raises(DataError, match="no prompts to send"):
        prepare(StubEngine(), CONTROL, (), sampling())


@pytest.mark.parametrize("tokenizes", [True, False], ids=["token-ids", "messages"])
def test_a_later_turn_holds_the_engine_s_own_replies(tokenizes: bool) -> None:
    engine = StubEngine(tokenizes=tokenizes)
    prepared = prepare(engine, CONTROL, prompts(1, turns=3), sampling())
    call = next_call(engine, prepared, prepared.prompts[0], ["first reply", "second reply"])
    assert asked(call) == (
        "user:question 0.0|assistant:first reply|user:question 0.1|assistant:second reply|user:question 0.2"
    )


def test_warm_up_sends_first_turns_with_a_short_output() -> None:
    engine = StubEngine()
    prepared = prepare(engine, CONTROL, prompts(2, turns=2), sampling(output_length=500))

    warm = warm_up(engine, prepared, 3)

    assert [asked(call) for call in warm.openings] == [
        "user:question 0.0",
        "user:question 1.0",
        "user:question 0.0",
    ]
    assert {json.loads(call.body)["output_length"] for call in warm.openings} == {16}
    assert [len(prompt.turns) for prompt in warm.prompts] == [1, 1, 1]


def test_warm_up_is_never_longer_than_what_is_measured() -> None:
    engine = StubEngine()
    prepared = prepare(engine, CONTROL, prompts(1), sampling(output_length=4))
    assert warm_up(engine, prepared, 1).sampling.output_length == 4


class OnlyMessages(StubEngine):
    messages_only = True


def test_an_engine_that_speaks_messages_gets_them_whatever_tokenizer_there_is() -> None:
    prepared = prepare(OnlyMessages(), CONTROL, prompts(1), sampling(), model="tiny")
    assert (prepared.tokenization, prepared.note) == ("messages", "")
    assert prepared.generations[0].messages == (Message("user", "question 0.0"),)
