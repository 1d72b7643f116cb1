"""vLLM's dialect of the OpenAI API. The streams in `recorded/` are a real vLLM 0.32's, with the model's path cut off."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.engines.base import Counters, Generation, Message
from pytest_speedbench.engines.openai_wire import (
    completion_call,
    parse_prometheus,
    prometheus_counters,
    read_stream,
    tokenize,
)
from pytest_speedbench.errors import EngineError
from pytest_speedbench.settings.target import Sampling
from tests.engines.answering_server import answering

RECORDED = Path(__file__).parent / "recorded"
HELLO = (Message("user", "Say something."),)


def recorded(name: str) -> list[bytes]:
    return (RECORDED / f"{name}.txt").read_bytes().splitlines()


def event(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def text_event(text: str, **choice: Any) -> bytes:
    return event(choices=[{"index": 0, "text": text, "finish_reason": None, **choice}])


def usage_event(tokens: int, **fields: Any) -> bytes:
    return event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": tokens}, **fields)


def spec_event(tokens: int, histogram: list[int]) -> bytes:
    told = {"acceptance_histogram": histogram, "num_draft_tokens": sum(histogram) * (len(histogram) - 1)}
    return usage_event(tokens, metrics={"speculative_decoding": told})


class TestCompletionCall:
    def test_sends_token_ids_as_the_whole_prompt(self) -> None:
        call = completion_call(Generation(Sampling.exactly(64), token_ids=(0, 5, 7)), "tiny")
        assert call.path == "/v1/completions"
        assert call.headers["Content-Type"] == "application/json"
        assert json.loads(call.body) == {
            "model": "tiny",
            "prompt": [0, 5, 7],
            "add_special_tokens": False,
            "max_tokens": 64,
            "temperature": 0.0,
            "top_p": 1.0,
            "seed": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }

    def test_sends_messages_to_the_engines_own_template(self) -> None:
        sampling = Sampling(8, temperature=0.7, ignore_eos=False, seed=3)
        call = completion_call(Generation(sampling, messages=HELLO), "tiny")
        body = json.loads(call.body)
        assert call.path == "/v1/chat/completions"
        assert body["messages"] == [{"role": "user", "content": "Say something."}]
        assert (body["temperature"], body["ignore_eos"], body["seed"]) == (0.7, False, 3)
        assert "prompt" not in body and "add_special_tokens" not in body

    def test_adds_what_one_engine_needs(self) -> None:
        call = completion_call(
            Generation(Sampling.exactly(8), token_ids=(1,)), "tiny", {"top_k": -1, "top_p": 0.9}
        )
        body = json.loads(call.body)
        assert (body["top_k"], body["top_p"]) == (-1, 0.9)

    @pytest.mark.parametrize("prompt", [{}, {"token_ids": (1,), "messages": HELLO}])
    def test_wants_exactly_one_form_of_prompt(self, prompt: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="either token ids or messages"):
            completion_call(Generation(Sampling.exactly(8), **prompt), "tiny")


class TestReadStream:
    def test_a_draft_models_stream(self) -> None:
        reply = read_stream(recorded("vllm_draft_model_completion"))
        assert reply.text == " cmdkeys close errorsLIkeys close errorsLIkeys close errors"
        assert reply.tokens_per_event == (1, 4, 4, 1, 2, 0)
        assert (reply.output_tokens, reply.prompt_tokens) == (12, 8)
        assert reply.token_ids == (1913, 1861, 1435, 1170, 972, 1861, 1435, 1170, 972, 1861, 1435, 1170)
        assert reply.finish_reason == "length"
        # 1 + 4 steps + 9 accepted drafts make 14 tokens, of which the last step lost 2 past the end
        assert reply.counters == Counters(
            source="response",
            drafted_steps=4,
            drafted_tokens=12,
            accepted_tokens=9,
            accepted_per_position=(3, 3, 3),
            draft_length=3,
        )

    def test_a_chat_stream_tells_the_same(self) -> None:
        chat = read_stream(recorded("vllm_draft_model_chat"))
        completion = read_stream(recorded("vllm_draft_model_completion"))
        assert chat.tokens_per_event == (0, *completion.tokens_per_event)
        assert chat.text == completion.text
        assert chat.token_ids == completion.token_ids
        assert chat.counters == completion.counters

    def test_an_ngram_stream_in_which_the_server_merged_steps(self) -> None:
        reply = read_stream(recorded("vllm_ngram_completion"))
        # 2 tokens at once though no draft was accepted before: chunks are no steps
        assert reply.tokens_per_event == (2, 2, 1, 1, 1, 1, 1, 1, 2, 0)
        assert reply.counters is not None
        assert (reply.counters.drafted_steps, reply.counters.accepted_per_position) == (1, (1, 1, 1))

    def test_without_token_ids_the_growth_of_usage_tells_tokens(self) -> None:
        events = [
            event(choices=[{"text": "a"}], usage={"completion_tokens": 1}),
            event(choices=[{"text": "bcd"}], usage={"completion_tokens": 4}),
            event(choices=[], usage={"completion_tokens": 4, "prompt_tokens": 2}),
        ]
        reply = read_stream(events)
        assert reply.tokens_per_event == (1, 3, 0)
        assert reply.tokens_per_event_known
        assert reply.token_ids is None

    def test_with_neither_text_counts_as_one_token_and_the_last_takes_the_rest(self) -> None:
        reply = read_stream([text_event("a"), text_event(""), text_event("bcd"), usage_event(5)])
        assert reply.tokens_per_event == (1, 0, 4, 0)
        assert not reply.tokens_per_event_known

    def test_tokens_by_event_are_known_where_each_has_its_own_or_all_are_counted(self) -> None:
        plain = [text_event("a"), text_event("b"), text_event("c")]
        assert read_stream([*plain, usage_event(3)]).tokens_per_event_known
        assert read_stream([*plain, usage_event(4)]).tokens_per_event_known, "the last one may have no text"
        assert not read_stream([*plain, usage_event(5)]).tokens_per_event_known
        assert read_stream(recorded("vllm_ngram_completion")).tokens_per_event_known

    def test_with_neither_there_are_never_more_tokens_than_usage_says(self) -> None:
        reply = read_stream([text_event("a"), text_event("b"), text_event("c"), usage_event(2)])
        assert reply.tokens_per_event == (1, 1, 0, 0)

    def test_a_reasoning_delta_is_output_but_no_part_of_the_reply(self) -> None:
        thought = event(choices=[{"delta": {"reasoning": "hm"}}])
        said = event(choices=[{"delta": {"content": "yes"}}])
        reply = read_stream([thought, said, usage_event(2)])
        assert (reply.text, reply.tokens_per_event) == ("yes", (1, 1, 0))

    def test_token_ids_that_do_not_add_up_are_not_told(self) -> None:
        reply = read_stream([text_event("a", token_ids=[7]), usage_event(3)])
        assert reply.token_ids is None
        assert reply.tokens_per_event == (3, 0)

    def test_more_token_ids_than_usage_counts_are_refused(self) -> None:
        with pytest.raises(EngineError, match="carries 3 tokens, but its `usage` counts 2"):
            read_stream([text_event("abc", token_ids=[7, 8, 9]), usage_event(2)])

    def test_no_counters_where_the_server_sent_none(self) -> None:
        assert read_stream([text_event("a", token_ids=[7]), usage_event(1)]).counters is None
        silent = usage_event(1, metrics={"speculative_decoding": None})
        assert read_stream([text_event("a", token_ids=[7]), silent]).counters is None

    @pytest.mark.parametrize(
        "error", [{"error": {"message": "out of blocks"}}, {"object": "error", "message": "out of blocks"}]
    )
    def test_an_error_in_the_stream_is_raised(self, error: dict[str, Any]) -> None:
        with pytest.raises(EngineError, match="reported an error in the stream: out of blocks"):
            read_stream([text_event("a"), event(**error)])

    def test_a_stream_without_usage_is_refused(self) -> None:
        with pytest.raises(EngineError, match="stream of 1 events has no `usage`"):
            read_stream([text_event("a")])

    @pytest.mark.parametrize("broken", [b'{"choices": [', b"[]", b'{"a": 1}, {"b": 2}', b""])
    def test_an_event_that_is_no_json_object_is_named(self, broken: bytes) -> None:
        with pytest.raises(EngineError, match="event 2 of 3 in the response stream is no JSON object"):
            read_stream([text_event("a"), broken, usage_event(1)])

    @pytest.mark.parametrize(
        ("odd", "field", "fault"),
        [
            (usage_event("5"), "usage.completion_tokens", "Expected `int | null`, got `str`"),  # type: ignore[arg-type]
            (text_event("a", token_ids=[1, "b"]), "choices[0].token_ids[1]", "Expected `int`, got `str`"),
            (event(choices={}), "choices", "Expected `array | null`, got `object`"),
            (
                usage_event(1, metrics={"speculative_decoding": {"acceptance_histogram": 3}}),
                "metrics.speculative_decoding.acceptance_histogram",
                "Expected `array | null`, got `int`",
            ),
        ],
    )
    def test_a_field_of_another_shape_is_named(self, odd: bytes, field: str, fault: str) -> None:
        expected = f"event 2 of 3 in the response stream: `{field}` is not what it should be: {fault}"
        with pytest.raises(EngineError, match=f"^{re.escape(expected)}$"):
            read_stream([text_event("a"), odd, usage_event(1)])

    def test_what_python_s_encoder_writes_beyond_json_is_read(self) -> None:
        halves = [text_event("\ud83d", token_ids=[7]), text_event("\ude42", logprobs=float("nan"))]
        reply = read_stream([*halves, usage_event(1)])
        assert (reply.text, reply.token_ids) == ("\ud83d\ude42", (7,))

    @given(st.lists(st.integers(0, 50), min_size=1, max_size=9).filter(any))
    def test_the_histogram_and_the_positions_say_the_same(self, histogram: list[int]) -> None:
        counters = read_stream([spec_event(1, histogram)]).counters
        assert counters is not None
        assert counters.drafted_steps == sum(histogram)
        assert counters.accepted_tokens == sum(counters.accepted_per_position)
        assert len(counters.accepted_per_position) == counters.draft_length == len(histogram) - 1
        at_least = (counters.drafted_steps, *counters.accepted_per_position, 0)
        assert [here - beyond for here, beyond in pairwise(at_least)] == histogram

    @given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=20), st.integers(0, 9))
    def test_every_token_arrives_exactly_once(self, events: list[tuple[int, bool]], more: int) -> None:
        stream = [
            text_event("x" * count, **({"token_ids": list(range(count))} if told else {}))
            for count, told in events
        ]
        tokens = sum(count for count, _ in events) + more
        reply = read_stream([*stream, usage_event(tokens)])
        assert sum(reply.tokens_per_event) == reply.output_tokens == tokens
        assert len(reply.tokens_per_event) == len(stream) + 1


class TestTokenize:
    def test_applies_template_and_generation_prompt(self) -> None:
        with answering({"POST /tokenize": (200, {"count": 3, "tokens": [0, 2, 9]})}) as (control, asked):
            assert tokenize(control, HELLO, "tiny") == (0, 2, 9)
        assert asked["POST /tokenize"] == {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Say something."}],
            "add_generation_prompt": True,
        }

    @pytest.mark.parametrize("status", [404, 405])
    def test_none_where_the_server_has_no_such_route(self, status: int) -> None:
        with answering({"POST /tokenize": (status, {"detail": "Not Found"})}) as (control, _):
            assert tokenize(control, HELLO, "tiny") is None

    def test_says_why_a_server_refused(self) -> None:
        refusal = {"error": {"message": "no chat template", "code": 400}}
        with (
            answering({"POST /tokenize": (400, refusal)}) as (control, _),
            pytest.raises(EngineError, match="/tokenize answered 400: no chat template"),
        ):
            tokenize(control, HELLO, "tiny")

    @pytest.mark.parametrize("answer", ["fine", {"count": 3}, {"tokens": None}, []])
    def test_refuses_an_answer_without_tokens(self, answer: Any) -> None:
        with (
            answering({"POST /tokenize": (200, answer)}) as (control, _),
            pytest.raises(EngineError, match="answered without `tokens`"),
        ):
            tokenize(control, HELLO, "tiny")


class TestPrometheus:
    def test_reads_a_real_servers_counters(self) -> None:
        with answering({"GET /metrics": (200, (RECORDED / "vllm_ngram_metrics.txt").read_text())}) as (
            control,
            _,
        ):
            assert prometheus_counters(control) == Counters(
                source="prometheus",
                drafted_steps=291,
                drafted_tokens=850,
                accepted_tokens=786,
                accepted_per_position=(278, 261, 247),
                draft_length=3,
                decode_steps=1153,
            )

    def test_sums_over_data_parallel_engines(self) -> None:
        exposition = "".join(
            f'vllm:spec_decode_num_drafts_total{{engine="{rank}",model_name="a {{b}}"}} {10 * (rank + 1)}.0\n'
            f'vllm:spec_decode_num_draft_tokens_total{{engine="{rank}"}} 20\n'
            f'vllm:spec_decode_num_accepted_tokens_total{{engine="{rank}"}} 1.2e+01 1795451738000\n'
            f'vllm:generation_tokens_total{{engine="{rank}"}} 25.0\n'
            f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{position="0",engine="{rank}"}} 8.0\n'
            f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="{rank}",position="1"}} 4.0\n'
            for rank in range(2)
        )
        assert parse_prometheus(exposition) == Counters(
            source="prometheus",
            drafted_steps=30,
            drafted_tokens=40,
            accepted_tokens=24,
            accepted_per_position=(16, 8),
            draft_length=2,
            output_tokens=50,
        )

    def test_positions_beyond_nine_are_in_order(self) -> None:
        positions = "".join(
            f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{position="{position}"}} {20 - position}\n'
            for position in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9, 11)
        )
        counters = parse_prometheus(
            "vllm:spec_decode_num_drafts_total 20\nvllm:spec_decode_num_accepted_tokens_total 174\n"
            + positions
        )
        assert counters is not None
        assert counters.draft_length == 12
        assert counters.accepted_per_position == tuple(range(20, 8, -1))

    def test_another_servers_prefix(self) -> None:
        exposition = (
            "llamacpp:spec_decode_num_drafts_total 4\nllamacpp:spec_decode_num_accepted_tokens_total 5\n"
        )
        counters = parse_prometheus(exposition, "llamacpp:")
        assert counters is not None
        assert (counters.drafted_steps, counters.accepted_tokens) == (4, 5)
        assert parse_prometheus(exposition) is None

    @pytest.mark.parametrize(
        "answer",
        [
            (404, ""),
            (200, ""),
            (200, "vllm:num_requests_running 0\nvllm:inter_token_latency_seconds_count 9\n"),
        ],
    )
    def test_none_where_nothing_is_counted(self, answer: tuple[int, str]) -> None:
        with answering({"GET /metrics": answer}) as (control, _):
            assert prometheus_counters(control) is None
