from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from pytest_speedbench.engines.openai_wire import parse_prometheus
from pytest_speedbench.engines.reference.batching import Batch, Job
from pytest_speedbench.engines.reference.clock import Accelerator, Pass
from pytest_speedbench.engines.reference.server import BROKEN_OFF_AFTER, Options, Server
from pytest_speedbench.engines.reference.vocabulary import built_in
from tests.engines.reference.decode import chat, decoding, generate
from tests.engines.reference.texts import CODE, STORY, THAI

Client = TestClient[Any, Any]
RUNNING = 'vllm:num_requests_running{engine="0",model_name="reference"} 0.0'
FAST = Accelerator(floor_s=1e-4, token_s=1e-6, prompt_token_s=0.0)


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Client]:
    server = Server(Options(**({"accelerator": FAST} | options)))
    async with TestClient(TestServer(server.application()), timeout=aiohttp.ClientTimeout(20)) as client:
        yield client


def serve(talk: Callable[[Client], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        async with serving(**options) as client:
            await talk(client)

    asyncio.run(run())


def body(prompt: list[int] | str, **fields: Any) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "max_tokens": 40,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    } | fields


async def stream(
    client: Client, asked: dict[str, Any], path: str = "/v1/completions"
) -> list[dict[str, Any]]:
    """The events of a stream, the final `[DONE]` checked and left out."""
    async with client.post(path, json=asked) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        events = (await response.read()).decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def tokens_of(events: list[dict[str, Any]]) -> list[int]:
    return [token for event in events for choice in event["choices"] for token in choice["token_ids"]]


@pytest.mark.parametrize("method", ["none", "ngram", "draft_model"])
def test_a_stream_has_one_event_for_prefill_and_one_for_each_step(method: str) -> None:
    expected, steps = generate(decoding(chat(CODE), method), 40)

    async def talk(client: Client) -> None:
        *events, usage = await stream(client, body(chat(CODE)))
        assert len(events) == 1 + len(steps)
        assert tokens_of(events) == expected
        assert "".join(event["choices"][0]["text"] for event in events) == built_in().decode(expected)
        reasons = [event["choices"][0]["finish_reason"] for event in events]
        assert reasons == [None] * len(steps) + ["length"]
        assert usage["choices"] == []
        prompt = len(chat(CODE))
        assert usage["usage"] == {
            "prompt_tokens": prompt,
            "completion_tokens": 40,
            "total_tokens": prompt + 40,
        }

    serve(talk, method=method)


@pytest.mark.parametrize("draft_length", [1, 3, 5])
def test_counters_explain_the_tokens_up_to_the_overshoot_of_the_last_step(draft_length: int) -> None:
    async def talk(client: Client) -> None:
        for length in range(1, 65):
            *events, usage = await stream(client, body(chat(STORY), max_tokens=length))
            told = usage["metrics"]["speculative_decoding"]
            histogram = told["acceptance_histogram"]
            steps, accepted = sum(histogram), sum(j * count for j, count in enumerate(histogram))
            assert 0 <= 1 + steps + accepted - length <= draft_length
            assert steps == len(events) - 1 == told["num_spec_steps"]
            assert len(histogram) == draft_length + 1 == told["num_spec_tokens"] + 1
            assert told["num_accepted_draft_tokens"] == accepted
            assert told["num_draft_tokens"] == steps * draft_length
            assert told["mean_acceptance_length"] == (1 + accepted / steps if steps else 1.0)
            assert told["draft_acceptance_rate"] == (accepted / (steps * draft_length) if steps else 0.0)

    serve(talk, draft_length=draft_length)


def test_prompt_lookup_counts_only_steps_that_had_a_draft() -> None:
    _, steps = generate(decoding(chat(CODE), "ngram"), 128)
    drafted = [step for step in steps if step.drafted]

    async def talk(client: Client) -> None:
        usage = (await stream(client, body(chat(CODE), max_tokens=128)))[-1]
        told = usage["metrics"]["speculative_decoding"]
        assert told["num_spec_steps"] == len(drafted) < len(steps)
        assert told["num_draft_tokens"] == sum(step.drafted for step in drafted)
        assert told["num_accepted_draft_tokens"] == sum(step.accepted for step in drafted)

    serve(talk, method="ngram")


def test_server_counters_are_the_sum_over_requests() -> None:
    async def talk(client: Client) -> None:
        usages = [
            events[-1]
            for events in await asyncio.gather(
                *[stream(client, body(chat(text))) for text in (CODE, STORY, THAI)]
            )
        ]
        told = [usage["metrics"]["speculative_decoding"] for usage in usages]
        exposition = await (await client.get("/metrics")).text()
        counters = parse_prometheus(exposition)
        assert counters is not None
        assert counters.drafted_steps == counters.decode_steps == sum(one["num_spec_steps"] for one in told)
        assert counters.drafted_tokens == sum(one["num_draft_tokens"] for one in told)
        assert counters.accepted_tokens == sum(one["num_accepted_draft_tokens"] for one in told)
        assert sum(counters.accepted_per_position) == counters.accepted_tokens
        assert counters.draft_length == 3
        assert 'reference:clock_late_seconds_total{engine="0",model_name="reference"}' in exposition

    serve(talk)


def test_without_a_method_nothing_is_counted() -> None:
    async def talk(client: Client) -> None:
        assert (await stream(client, body(chat(CODE))))[-1]["metrics"] is None
        assert parse_prometheus(await (await client.get("/metrics")).text()) is None

    serve(talk, method="none")


def test_output_does_not_depend_on_who_else_is_in_the_batch() -> None:
    async def talk(client: Client) -> None:
        alone = await stream(client, body(chat(THAI), temperature=1.0))
        together = await asyncio.gather(
            *[stream(client, body(chat(text), temperature=1.0)) for text in [CODE, STORY, THAI] * 5]
        )
        assert tokens_of(together[2]) == tokens_of(together[-1]) == tokens_of(alone)
        assert together[2][-1]["metrics"] == alone[-1]["metrics"]

    serve(talk)


def test_a_seed_changes_sampled_output_and_only_the_drafts_of_greedy_output() -> None:
    async def talk(client: Client) -> None:
        greedy = [await stream(client, body(chat(CODE), seed=seed)) for seed in (1, 2)]
        sampled = [await stream(client, body(chat(CODE), seed=seed, temperature=1.0)) for seed in (1, 2, 1)]
        assert tokens_of(greedy[0]) == tokens_of(greedy[1])
        assert greedy[0][-1]["metrics"] != greedy[1][-1]["metrics"]
        assert tokens_of(sampled[0]) != tokens_of(sampled[1])
        assert tokens_of(sampled[0]) == tokens_of(sampled[2])

    serve(talk)


def test_a_chat_streams_its_role_first_and_then_the_same_tokens() -> None:
    asked = body("", messages=[{"role": "user", "content": CODE}])
    del asked["prompt"]

    async def talk(client: Client) -> None:
        role, *events, usage = await stream(client, asked, "/v1/chat/completions")
        assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert tokens_of(events) == tokens_of((await stream(client, body(chat(CODE))))[:-1])
        assert usage["usage"]["prompt_tokens"] == len(chat(CODE))

    serve(talk)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_response_in_one_piece_says_what_the_stream_says(path: str) -> None:
    asked = body(chat(CODE), messages=[{"role": "user", "content": CODE}])

    async def talk(client: Client) -> None:
        *events, usage = await stream(client, asked, path)
        whole = await (await client.post(path, json=asked | {"stream": False})).json()
        choice = whole["choices"][0]
        assert choice["token_ids"] == [
            token for event in events for token in event["choices"][0].get("token_ids", [])
        ]
        assert choice["finish_reason"] == "length"
        assert (choice["message"]["content"] if "chat" in path else choice["text"]) == built_in().decode(
            choice["token_ids"]
        )
        assert (whole["usage"], whole["metrics"]) == (usage["usage"], usage["metrics"])

    serve(talk)


def test_usage_can_come_with_every_event() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}

    async def talk(client: Client) -> None:
        events = await stream(client, body(chat(CODE), stream_options=options))
        counts = [event["usage"]["completion_tokens"] for event in events]
        assert counts == sorted(counts)
        assert (counts[0], counts[-1]) == (1, 40)

    serve(talk)


def test_token_ids_and_usage_come_only_when_asked_for() -> None:
    async def talk(client: Client) -> None:
        events = await stream(client, body(chat(CODE), stream_options=None, return_token_ids=False))
        assert all(event["choices"] and "usage" not in event for event in events)
        assert not any("token_ids" in event["choices"][0] for event in events)

    serve(talk)


def test_an_output_may_end_before_its_length() -> None:
    async def talk(client: Client) -> None:
        *events, usage = await stream(client, body(chat(STORY), max_tokens=4000, ignore_eos=False))
        assert events[-1]["choices"][0]["finish_reason"] == "stop"
        assert tokens_of(events)[-1] == 1
        assert usage["usage"]["completion_tokens"] == len(tokens_of(events)) < 4000

    serve(talk)


def test_tokenize_applies_the_template_once_and_detokenize_shows_it() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": CODE}]

    async def talk(client: Client) -> None:
        told = await (
            await client.post("/tokenize", json={"messages": messages, "add_generation_prompt": True})
        ).json()
        assert told["tokens"] == built_in().chat([("system", "Be brief."), ("user", CODE)])
        assert told["count"] == len(told["tokens"])
        assert told["max_model_len"] == 131_072
        shown = await (await client.post("/detokenize", json={"tokens": told["tokens"]})).json()
        assert shown["prompt"] == f"<|bos|><|system|>Be brief.<|end|><|user|>{CODE}<|end|><|assistant|>"
        for special, start in ((True, [0]), (False, [])):
            asked = {"prompt": "one two", "add_special_tokens": special}
            told = await (await client.post("/tokenize", json=asked)).json()
            assert told["tokens"] == start + built_in().encode("one two")

    serve(talk)


def test_the_server_says_what_it_is() -> None:
    async def talk(client: Client) -> None:
        assert (await client.get("/health")).status == 200
        assert set(await (await client.get("/version")).json()) == {"version"}
        models = await (await client.get("/v1/models")).json()
        assert [model["id"] for model in models["data"]] == ["reference"]

    serve(talk)


@pytest.mark.parametrize(
    ("path", "asked", "status", "message"),
    [
        ("/v1/completions", b"{", 400, "no JSON"),
        ("/v1/completions", [], 400, "JSON object"),
        ("/v1/completions", {}, 400, "`prompt` must be"),
        ("/v1/completions", {"prompt": []}, 400, "`prompt` is empty"),
        ("/v1/completions", {"prompt": [1, 10**6]}, 400, "token id 1000000"),
        ("/v1/completions", {"prompt": [-1]}, 400, "token id -1"),
        ("/v1/completions", {"prompt": ["a", "b"]}, 400, "`prompt` must be one"),
        ("/v1/completions", {"prompt": "a", "model": "other"}, 404, "`other` does not exist"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0}, 400, "at least 1"),
        ("/v1/completions", {"prompt": "a", "max_tokens": "9"}, 400, "`max_tokens` must be an integer"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 10**6}, 400, "maximum context length is 131072"),
        ("/v1/completions", {"prompt": "a", "temperature": -1}, 400, "`temperature` must be"),
        ("/v1/completions", {"prompt": "a", "n": 2}, 400, "`n` may only be 1"),
        ("/v1/completions", {"prompt": "a", "top_p": 0.9}, 400, "`top_p` may only be 1"),
        ("/v1/completions", {"prompt": "a", "stream": 1}, 400, "`stream` must be true or false"),
        ("/v1/chat/completions", {"prompt": "a"}, 400, "`messages` must be"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "robot", "content": "a"}]},
            400,
            "unknown role 'robot'",
        ),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 3}]}, 400, "must be a text"),
        ("/detokenize", {"tokens": "a"}, 400, "`tokens` must be"),
        ("/nowhere", {}, 404, "Not Found"),
        ("/health", {}, 405, "Method Not Allowed"),
    ],
)
def test_a_request_that_cannot_be_served_is_told_why(
    path: str, asked: Any, status: int, message: str
) -> None:
    async def talk(client: Client) -> None:
        data = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
        response = await client.post(path, data=data)
        error = (await response.json())["error"]
        assert (response.status, error["code"]) == (status, status)
        assert message in error["message"]

    serve(talk)


def test_a_prompt_and_its_output_must_fit_the_model() -> None:
    async def talk(client: Client) -> None:
        assert len(tokens_of(await stream(client, body([300] * 8, max_tokens=8)))) == 8
        assert (await client.post("/v1/completions", json=body([300] * 8, max_tokens=9))).status == 400

    serve(talk, max_model_len=16)


@pytest.mark.parametrize("fault_after", [0, 2])
def test_fault_http_500(fault_after: int) -> None:
    async def talk(client: Client) -> None:
        for number in range(fault_after + 2):
            response = await client.post("/v1/completions", json=body(chat(CODE)))
            await response.read()
            assert response.status == (200 if number < fault_after else 500)
        assert "--fault http-500" in (await response.json())["error"]["message"]

    serve(talk, fault="http-500", fault_after=fault_after)


def test_fault_drop_closes_the_connection_in_mid_stream() -> None:
    async def talk(client: Client) -> None:
        await stream(client, body(chat(CODE)))
        async with client.post("/v1/completions", json=body(chat(CODE))) as response:
            received = b""
            with pytest.raises(aiohttp.ClientError):
                async for part in response.content.iter_any():
                    received += part
        assert received.count(b"data: ") == BROKEN_OFF_AFTER
        assert (await client.get("/health")).status == 200

    serve(talk, fault="drop", fault_after=1)


def test_fault_stall_keeps_the_connection_open_and_sends_nothing() -> None:
    async def talk(client: Client) -> None:
        await stream(client, body(chat(CODE)))
        async with client.post("/v1/completions", json=body(chat(CODE))) as response:
            for _ in range(2 * BROKEN_OFF_AFTER):
                await response.content.readline()
            while RUNNING not in await (await client.get("/metrics")).text():
                pass
            # It has left the batch, so nothing more can come; and yet its connection stands.
            assert response.content.read_nowait() == b""
            assert not response.content.is_eof()

    serve(talk, fault="stall", fault_after=1)


def test_fault_no_counters_takes_them_out_of_responses_and_metrics() -> None:
    async def talk(client: Client) -> None:
        assert (await stream(client, body(chat(CODE))))[-1]["metrics"] is not None
        after = (await stream(client, body(chat(CODE))))[-1]
        assert after["metrics"] is None
        assert after["usage"]["completion_tokens"] == 40
        assert parse_prometheus(await (await client.get("/metrics")).text()) is None

    serve(talk, fault="no-counters", fault_after=1)


def test_fault_loop_repeats_a_short_cycle() -> None:
    async def talk(client: Client) -> None:
        assert len(set(tokens_of(await stream(client, body(chat(CODE)))))) > 15
        *events, usage = await stream(client, body(chat(CODE), max_tokens=200))
        assert len(set(tokens_of(events))) <= 4
        assert usage["metrics"]["speculative_decoding"]["mean_acceptance_length"] > 3.8

    serve(talk, fault="loop", fault_after=1)


def test_fault_slow_start_is_not_healthy_for_a_number_of_calls() -> None:
    async def talk(client: Client) -> None:
        statuses = []
        for _ in range(5):
            response = await client.post("/v1/completions", json=body(chat(CODE)))
            await response.read()
            statuses.append((response.status, (await client.get("/health")).status))
        assert statuses == [(503, 503)] * 3 + [(503, 200), (200, 200)]

    serve(talk, fault="slow-start", fault_after=3)


def test_arriving_requests_join_a_running_batch() -> None:
    passes: list[Pass] = []

    class Recording(Accelerator):
        def latency_s(self, work: Pass) -> float:
            passes.append(work)
            return 1e-4

    async def run() -> None:
        batch = Batch(Recording(), draft_passes=3, draft_length=3)
        running = asyncio.create_task(batch.run())
        jobs = [Job(decoding(chat(text), "draft_model"), len(chat(text)), 10, 3) for text in (CODE, STORY)]
        batch.submit(jobs[0])
        await jobs[0].deliveries.get()
        await jobs[0].deliveries.get()
        batch.submit(jobs[1])
        for job in jobs:
            while (await job.deliveries.get()).finish_reason is None:
                pass
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())
    assert passes[0] == Pass(decoding=0, verified=0, draft_passes=0, prompt_tokens=len(chat(CODE)))
    assert passes[1] == Pass(decoding=1, verified=4, draft_passes=3)
    joined = [work for work in passes if work.prompt_tokens == len(chat(STORY))]
    assert joined == [Pass(decoding=1, verified=4, draft_passes=3, prompt_tokens=len(chat(STORY)))]
    assert any(work.decoding == 2 and work.verified == 8 for work in passes)
