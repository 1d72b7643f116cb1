"""An engine that decodes as before and only cuts its stream otherwise is as fast as before."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from pytest_speedbench.cells import Cell
from pytest_speedbench.load.records import Arrivals, RequestRecord
from pytest_speedbench.metrics.measurement import Measurement
from pytest_speedbench.metrics.throughput import decode_s
from tests.metrics.records import build, counters, prompt, request, round_of

CELL = Cell("qualitative", "coding", 8)
STEP_S = 0.02
REQUESTS = 64


def engine(seed: int = 1, shortest: int = 8) -> list[RequestRecord]:
    """Requests of 8 to 60 steps that take 20 ms each; easy and hard prompts."""
    random = Random(seed)
    requests = []
    for number in range(REQUESTS):
        weights = random.choice([(5, 2, 1, 1), (2, 2, 2, 3)])
        accepted = random.choices(range(4), weights, k=random.randint(shortest, 60))
        overshoot = random.randint(0, accepted[-1])
        requests.append(request(f"q{number:02}", accepted, step_s=STEP_S, overshoot=overshoot))
    return requests


def merged(record: RequestRecord, first: int, every: int = 1) -> RequestRecord:
    """The same output, its first `first` + 1 events sent as one, and later events in groups of `every`."""
    moments, tokens = record.arrivals.received_s, record.arrivals.tokens
    groups = [range(first + 1)]
    groups += [range(at, min(at + every, len(tokens))) for at in range(first + 1, len(tokens), every)]
    arrivals = Arrivals.of((moments[group[-1]], sum(tokens[i] for i in group)) for group in groups)
    return replace(record, arrivals=arrivals)


def measure(requests: list[RequestRecord], method: str = "eagle3") -> Measurement:
    prompts = [prompt(record.question_id) for record in requests]
    return build(CELL, method, [round_of(*requests, batch_size=8)], prompts)


def shared(requests: list[RequestRecord]) -> Measurement:
    """The same, counted by the server for all requests together."""
    own = [record.counters for record in requests if record.counters is not None]
    positions = [counts.accepted_per_position for counts in own]
    server = replace(
        counters([], source="prometheus"),
        drafted_steps=sum(counts.drafted_steps or 0 for counts in own),
        drafted_tokens=sum(counts.drafted_tokens or 0 for counts in own),
        accepted_tokens=sum(counts.accepted_tokens for counts in own),
        accepted_per_position=tuple(map(sum, zip(*positions, strict=True))),
    )
    silent = [replace(record, counters=None) for record in requests]
    prompts = [prompt(record.question_id) for record in requests]
    return build(CELL, "eagle3", [round_of(*silent, batch_size=8, server_counters=server)], prompts)


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_the_first_token_may_come_alone_or_with_the_next_step(seed: int, every: int) -> None:
    requests = engine(seed)
    before = measure(requests)
    after = measure([merged(record, 1, every) for record in requests])
    assert before.problems == after.problems == ()
    assert before.metrics["step_latency_s_mean"] == pytest.approx(STEP_S)
    for metric in ("user_tps", "step_latency_s_mean"):
        assert after.metrics[metric] == pytest.approx(before.metrics[metric], rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_where_each_later_step_has_its_arrival_the_correction_is_exact(seed: int) -> None:
    requests = engine(seed)
    after = measure([merged(record, 1) for record in requests]).metrics
    assert after["step_latency_s_mean"] == pytest.approx(STEP_S, rel=1e-9)
    assert after["step_latency_s_p99"] == pytest.approx(STEP_S, rel=1e-9)
    assert after["user_tps"] == pytest.approx(measure(requests).metrics["user_tps"], rel=1e-9)


@pytest.mark.parametrize("first", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_several_steps_may_come_with_the_first_token(seed: int, first: int) -> None:
    requests = engine(seed, shortest=20)
    before, after = measure(requests), measure([merged(record, first, 2) for record in requests])
    for metric in ("user_tps", "step_latency_s_mean"):
        assert after.metrics[metric] == pytest.approx(before.metrics[metric], rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_counters_of_the_server_alone_correct_by_tokens(seed: int) -> None:
    requests = engine(seed)
    before, after = shared(requests), shared([merged(record, 1) for record in requests])
    assert before.problems == ()
    for metric in ("user_tps", "step_latency_s_mean"):
        assert after.metrics[metric] == pytest.approx(before.metrics[metric], rel=0.01)


def test_without_speculation_a_token_is_a_step() -> None:
    plain = [request(f"q{n}", [0] * n, step_s=STEP_S, counted=False) for n in range(3, 40)]
    after = measure([merged(record, 1) for record in plain], method="none").metrics
    assert after["step_latency_s_mean"] == pytest.approx(STEP_S)
    assert after["user_tps"] == pytest.approx(1 / STEP_S)


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("every", [1, 3])
def test_user_tps_is_acceptance_length_over_step_latency_in_every_pattern(first: int, every: int) -> None:
    requests = [merged(record, first, every) for record in engine()]
    for measured in (measure(requests), shared(requests)):
        metrics = measured.metrics
        assert metrics["user_tps"] == pytest.approx(
            metrics["acceptance_length"] / metrics["step_latency_s_mean"]
        )


def test_the_pattern_is_reported_and_said() -> None:
    requests = engine()
    alone, together = measure(requests), measure([merged(record, 1) for record in requests])
    length = alone.metrics["acceptance_length"]
    assert alone.metrics["first_arrival_tokens"] == 1
    assert alone.metrics["tokens_per_arrival"] == pytest.approx(length)
    assert together.metrics["first_arrival_tokens"] == pytest.approx(1 + length, rel=0.1)
    assert measure([merged(r, 0, 2) for r in requests]).metrics["tokens_per_arrival"] > 1.9 * length
    assert alone.notes == ()
    (note,) = together.notes
    assert note.startswith("the server sends its first token together with the next step's (")


def test_one_step_in_two_arrivals_is_shared_out_by_tokens() -> None:
    """Three steps in four later arrivals: how many came with the first token cannot be counted."""
    record = replace(
        request(accepted_by_step=[3, 3, 3]),
        arrivals=Arrivals.of([(0.0, 5), (0.1, 2), (0.2, 2), (0.3, 2), (0.4, 2)]),
    )
    assert decode_s(record, 3) == pytest.approx(0.4 * 3 / (3 - 3 * 4 / 12))


def test_inconsistent_counters_are_a_problem_and_no_crash() -> None:
    """Nine drafts accepted in no step, for an output of six tokens."""
    wrong = replace(counters([]), accepted_tokens=9, drafted_tokens=9, accepted_per_position=(3, 3, 3))
    record = replace(request(accepted_by_step=[3, 0]), counters=wrong)
    measured = measure([merged(record, 1)])
    assert measured.problems
    assert decode_s(merged(record, 1), 0) > 0
