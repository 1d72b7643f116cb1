"""SGLang's streams, recorded from a real server (0.5.23), and its counters under the names of all versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.engines.base import Counters, Reply
from pytest_speedbench.engines.sglang import SglangEngine
from pytest_speedbench.engines.sglang_wire import Event, read_counters
from pytest_speedbench.engines.sglang_wire import read_generate as read_events
from pytest_speedbench.errors import EngineError
from pytest_speedbench.metrics.acceptance import count_steps, inconsistency
from pytest_speedbench.settings.target import Target

RECORDED = Path(__file__).parent / "recorded"
PRESENT = {
    "spec_verify_ct": 12,
    "spec_num_correct_drafts": 5,
    "spec_num_proposed_drafts": 36,
    "spec_correct_drafts_histogram": [8, 3, 1],
}


def read(events: list[bytes], method: str = "ngram") -> Reply:
    return SglangEngine(Target(name="t", engine="sglang", method=method, draft_length=3)).read(events)


def recorded(name: str) -> list[bytes]:
    return (RECORDED / f"{name}.txt").read_bytes().splitlines()


def event(tokens: int, finish: Any = None, **fields: Any) -> dict[str, Any]:
    told = {"completion_tokens": tokens, "finish_reason": finish, **fields.pop("meta_info", {})}
    return {"text": "", "meta_info": told, **fields}


def read_generate(chunks: list[dict[str, Any]], draft_length: int) -> Reply:
    return read_events(msgspec.convert(chunks, list[Event]), draft_length)


class TestGenerate:
    def test_a_stream_of_deltas(self) -> None:
        reply = read(recorded("sglang_ngram_generate"))
        assert (reply.output_tokens, reply.prompt_tokens, reply.finish_reason) == (16, 16, "length")
        assert reply.tokens_per_event == (1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 1, 2, 1)
        assert reply.token_ids is not None
        assert len(reply.token_ids) == 16
        assert reply.counters == Counters(
            source="response",
            drafted_steps=12,
            drafted_tokens=36,
            accepted_tokens=5,
            accepted_per_position=(4, 1, 0),
            draft_length=3,
            decode_steps=12,
        )

    def test_a_stream_that_repeats_what_there_is_so_far(self) -> None:
        reply = read(recorded("sglang_standalone_generate"), "draft_model")
        assert sum(reply.tokens_per_event) == reply.output_tokens == 12
        assert reply.token_ids == (1913, 1861, 1435, 1170, 972, 1861, 1435, 1170, 972, 1861, 1435, 1170)
        assert reply.text == " cmdkeys close errorsLIkeys close errorsLIkeys close errors"
        assert reply.counters is not None
        assert (reply.counters.decode_steps, reply.counters.accepted_per_position) == (5, (4, 1, 1))

    def test_both_hold_the_identity(self) -> None:
        """All steps and all accepted drafts make the output, but for the drafts past its end."""
        for name, overshoot in (("sglang_ngram_generate", 2), ("sglang_standalone_generate", 0)):
            reply = read(recorded(name))
            assert reply.counters is not None
            assert reply.counters.decode_steps is not None
            made = 1 + reply.counters.decode_steps + reply.counters.accepted_tokens
            assert made - reply.output_tokens == overshoot
            assert inconsistency("ngram", reply.output_tokens, reply.counters) is None

    def test_versions_without_ids_in_the_stream_repeat_the_text(self) -> None:
        finish = {"type": "length", "length": 3}
        reply = read_generate([{**event(1), "text": "a"}, {**event(3, finish), "text": "abc"}], 3)
        assert (reply.text, reply.token_ids, reply.tokens_per_event) == ("abc", None, (1, 2))

    def test_text_that_repeats_itself_is_no_repetition_of_the_stream(self) -> None:
        finish = {"type": "length", "length": 3}
        chunks = [event(1), event(2), event(3, finish)]
        reply = read_generate([{**each, "text": "ha", "output_ids": [7]} for each in chunks], 3)
        assert (reply.text, reply.token_ids) == ("hahaha", (7, 7, 7))

    def test_an_event_may_repeat_more_than_there_was_when_it_was_counted(self) -> None:
        finish = {"type": "length", "length": 3}
        early = {**event(1), "text": "a", "output_ids": [7, 8]}
        reply = read_generate([early, {**event(3, finish), "text": "abc", "output_ids": [7, 8, 9]}], 3)
        assert (reply.text, reply.token_ids, reply.tokens_per_event) == ("abc", (7, 8, 9), (1, 2))

    @given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.booleans())
    def test_every_token_arrives_exactly_once(self, sizes: list[int], repeats: bool) -> None:
        ids: list[int] = []
        chunks: list[dict[str, Any]] = []
        for size in sizes:
            new = list(range(len(ids), len(ids) + size))
            ids += new
            finish = {"type": "stop"} if len(chunks) == len(sizes) - 1 else None
            chunks.append(event(len(ids), finish, output_ids=list(ids) if repeats else new))
        reply = read_generate(chunks, 3)
        assert reply.tokens_per_event == tuple(sizes)
        assert reply.token_ids == tuple(ids)

    def test_one_token_has_no_counters(self) -> None:
        assert read_generate([event(1, {"type": "length"}, output_ids=[7])], 3).counters is None

    def test_a_request_that_was_aborted(self) -> None:
        aborted = event(3, {"type": "abort", "message": "out of memory"})
        with pytest.raises(EngineError, match="the server aborted the request: out of memory"):
            read_generate([event(1), aborted], 3)

    @pytest.mark.parametrize("chunks", [[], [event(1), event(2)], [{}]])
    def test_a_stream_that_ends_too_early(self, chunks: list[dict[str, Any]]) -> None:
        with pytest.raises(EngineError, match=f"ended after {len(chunks)} events, before its generation"):
            read_generate(chunks, 3)

    def test_tokens_that_are_taken_back(self) -> None:
        with pytest.raises(EngineError, match=r"number of tokens goes back: \[3, 2\]"):
            read_generate([event(3), event(2, {"type": "length"})], 3)

    def test_an_error_in_the_stream(self) -> None:
        error = {"error": {"message": "The input (5000 tokens) is longer", "code": 400}}
        with pytest.raises(EngineError, match=r"reported an error in the stream: The input \(5000 tokens\)"):
            read([json.dumps(error).encode()])


class TestChat:
    def test_counters_come_in_an_event_of_their_own(self) -> None:
        chat, native = (
            read(recorded(f"sglang_standalone_{name}"), "draft_model") for name in ("chat", "generate")
        )
        assert chat.counters == native.counters
        assert chat.text == native.text
        assert (chat.output_tokens, chat.prompt_tokens, chat.finish_reason) == (12, 8, "length")
        assert sum(chat.tokens_per_event) == 12

    def test_a_server_that_was_not_asked_or_cannot(self) -> None:
        events = [line for line in recorded("sglang_standalone_chat") if b"sglext" not in line]
        assert read(events).counters is None


class TestCounters:
    @pytest.mark.parametrize(
        "told",
        [
            PRESENT,
            {
                "spec_verify_ct": 12,
                "spec_accepted_drafts": 5,
                "spec_proposed_drafts": 36,
                "spec_accept_histogram": [8, 3, 1],
            },
            {
                "spec_verify_ct": 12,
                "spec_accept_token_num": 5,
                "spec_draft_token_num": 36,
                "spec_accept_histogram": [8, 3, 1],
            },
        ],
    )
    def test_names_of_all_versions_say_the_same(self, told: dict[str, Any]) -> None:
        assert read_counters(told, 3) == read_counters(PRESENT, 3)

    def test_a_version_without_a_histogram_tells_no_positions(self) -> None:
        told = {"spec_verify_ct": 12, "spec_accept_token_num": 5, "spec_draft_token_num": 36}
        counters = read_counters(told, 3)
        assert counters is not None
        assert counters.accepted_per_position == ()
        assert (counters.decode_steps, counters.accepted_tokens) == (12, 5)

    def test_what_the_server_averages_is_no_counter(self) -> None:
        assert read_counters({"spec_accept_length": 2.4, "spec_accept_rate": 0.4}, 3) is None

    def test_a_draft_longer_than_it_should_be_is_told(self) -> None:
        counters = read_counters({**PRESENT, "spec_correct_drafts_histogram": [8, 3, 0, 0, 1]}, 3)
        assert counters is not None
        assert counters.draft_length == 4

    def test_a_preempted_request_resumes_with_a_step_that_verifies_nothing(self) -> None:
        """Recorded from a server that was made to preempt: 64 tokens of 27 verifications and 10 resumptions."""
        told = {
            "spec_verify_ct": 27,
            "spec_num_correct_drafts": 26,
            "spec_num_proposed_drafts": 81,
            "spec_correct_drafts_histogram": [17, 1, 2, 7],
        }
        counters = read_counters({**told, "num_retractions": 10}, 3)
        assert counters is not None
        assert count_steps("eagle", 64, counters).steps == 37
        assert inconsistency("eagle", 64, counters) is None
        without = read_counters(told, 3)
        assert without is not None
        assert inconsistency("eagle", 64, without) == (
            "27 steps and 26 accepted drafts leave 10 of 63 tokens unexplained"
        )

    @pytest.mark.parametrize("method", ["ngram", "draft_model", "eagle", "eagle3", "mtp", "dflash"])
    @pytest.mark.parametrize(("output_tokens", "holds"), [(15, True), (18, True), (14, False), (19, False)])
    def test_an_output_that_the_counters_do_not_make_is_refused(
        self, method: str, output_tokens: int, holds: bool
    ) -> None:
        """1 + 12 steps + 5 drafts make 18 tokens, of which the last step may lose 3."""
        counters = read_counters(PRESENT, 3)
        assert counters is not None
        assert (inconsistency(method, output_tokens, counters) is None) is holds
