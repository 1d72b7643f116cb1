"""Any OpenAI-compatible endpoint: what it is sent, which key goes where, and what is made of its events."""

from __future__ import annotations

import json

import pytest

from pytest_speedbench.engines.base import Counters, Generation, Message
from pytest_speedbench.engines.openai_endpoint import OpenAiEndpoint
from pytest_speedbench.errors import EngineError
from pytest_speedbench.settings.target import Sampling, Target
from tests.engines.answering_server import answering

LOCAL = "http://127.0.0.1:8000"
HELLO = Generation(Sampling.exactly(64), messages=(Message("user", "Hello"),))


def endpoint(url: str = LOCAL, model: str | None = "tiny") -> OpenAiEndpoint:
    return OpenAiEndpoint(Target("t", "openai", "unknown", 0, model=model, url=url))


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("SPEEDBENCH_API_KEY", raising=False)


def event(text: str, total: int | None, finish: str | None = None) -> bytes:
    usage = None if total is None else {"prompt_tokens": 5, "completion_tokens": total}
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


class TestCall:
    def test_sends_messages_and_only_what_the_api_has(self) -> None:
        call = endpoint().call(
            Generation(Sampling(64, temperature=0.0, ignore_eos=False), messages=HELLO.messages)
        )
        assert call.path == "/v1/chat/completions"
        assert json.loads(call.body) == {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 64,
            "temperature": 0.0,
            "top_p": 1.0,
            "seed": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def test_a_fixed_output_length_is_asked_for_where_it_is_wanted(self) -> None:
        assert json.loads(endpoint().call(HELLO).body)["ignore_eos"] is True

    @pytest.mark.parametrize(
        ("url", "path"),
        [(LOCAL, "/v1/models"), (f"{LOCAL}/v1", "/models"), (f"{LOCAL}/gateway", "/v1/models")],
    )
    def test_a_url_may_end_in_v1(self, url: str, path: str) -> None:
        assert endpoint(url).ready_path == path


class TestKey:
    def test_is_none_where_there_is_none(self) -> None:
        assert endpoint().authorization() == {}
        assert "Authorization" not in endpoint().call(HELLO).headers

    def test_our_own_variable_wins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "usual")
        monkeypatch.setenv("SPEEDBENCH_API_KEY", "own\n")
        assert endpoint().authorization() == {"Authorization": "Bearer own"}

    @pytest.mark.parametrize(
        ("url", "sent"),
        [("https://api.example.com/v1", True), (LOCAL, True), ("http://10.0.0.5:8000", False)],
    )
    def test_the_usual_variable_goes_to_https_or_this_machine_only(
        self, monkeypatch: pytest.MonkeyPatch, url: str, sent: bool
    ) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "usual")
        assert bool(endpoint(url).authorization()) is sent
        monkeypatch.setenv("SPEEDBENCH_API_KEY", "own")
        assert endpoint(url).authorization() == {"Authorization": "Bearer own"}

    def test_is_not_shown_with_the_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SPEEDBENCH_API_KEY", "very-secret")
        call = endpoint().call(HELLO)
        assert call.headers["Authorization"] == "Bearer very-secret"
        assert "very-secret" not in repr(call)


class TestRead:
    def test_events_that_tell_their_growth_are_taken_for_steps(self) -> None:
        """A first token, three steps of 2, 3 and 1 tokens, and an event without any."""
        totals = [("a", 1), ("b c", 3), ("d e f", 6), ("g", 7), ("", 7)]
        events = [event(text, total) for text, total in totals] + [event("", 7, "stop")]
        reply = endpoint().read(events)
        assert reply.tokens_per_event == (1, 2, 3, 1, 0, 0)
        assert reply.counters == Counters("estimated", None, None, 3, (), 0, decode_steps=3)

    def test_usage_at_the_end_alone_tells_no_steps(self) -> None:
        reply = endpoint().read([event("a", None), event("b", None, "stop"), event("", 2)])
        assert (reply.output_tokens, reply.counters) == (2, None)

    def test_one_event_for_everything_tells_no_steps(self) -> None:
        assert endpoint().read([event("a b c", 3, "stop")]).counters is None

    def test_what_a_server_tells_beyond_the_api_is_left_alone(self) -> None:
        told = {"metrics": {"speculative_decoding": {"acceptance_histogram": [0, 1]}}}
        last = json.loads(event("", 2, "stop")) | told
        assert endpoint().read([event("a b", None), json.dumps(last).encode()]).counters is None


class TestModel:
    @pytest.mark.parametrize(
        ("models", "told"), [([], "serves no model"), (["a", "b"], "serves a, b"), (["m"] * 7, "and more")]
    )
    def test_has_to_be_named_where_there_is_not_one(self, models: list[str], told: str) -> None:
        answers = {"GET /v1/models": (200, {"data": [{"id": name} for name in models]})}
        with answering(answers) as (control, _), pytest.raises(EngineError, match=told):
            endpoint(model=None).version(control)

    def test_a_refusal_is_told_as_the_endpoint_words_it(self) -> None:
        answers = {
            "GET /v1/models": (200, {"data": []}),
            "POST /v1/chat/completions": (429, {"error": {"message": "quota exceeded"}}),
        }
        with answering(answers) as (control, _), pytest.raises(EngineError, match=r"429: .*quota exceeded"):
            endpoint().version(control)
