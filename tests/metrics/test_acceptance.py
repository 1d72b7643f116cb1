from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.engines.base import Counters
from pytest_speedbench.metrics.acceptance import (
    StepCounts,
    acceptance_length,
    acceptance_length_low,
    conditional_acceptance_rate,
    count_steps,
    disagreement,
    draft_acceptance_rate,
    drafted_acceptance_length,
    histogram,
    inconsistency,
    joint_acceptance_rate,
    mean_of_requests_acceptance_length,
    total,
    with_steps_of_server,
)
from tests.metrics.records import DRAFT_LENGTH, counters, request

accepted_by_step = st.lists(st.integers(0, DRAFT_LENGTH), min_size=1, max_size=60)


def counts_of(steps: list[int], overshoot: int = 0) -> StepCounts:
    record = request(accepted_by_step=steps, overshoot=overshoot)
    return count_steps("eagle3", record.output_tokens, record.counters)


def test_acceptance_length_counts_the_bonus_token_and_leaves_out_the_prefill_token() -> None:
    counts = counts_of([2, 0, 3])
    assert counts.output_tokens == 1 + 3 + 1 + 4
    assert acceptance_length(counts) == 8 / 3


def test_drafts_accepted_past_the_end_of_the_output_are_not_delivered_and_do_not_count() -> None:
    counts = counts_of([2, 0, 3], overshoot=3)
    assert acceptance_length(counts) == 5 / 3
    assert drafted_acceptance_length(counts) == 1 + 5 / 3


def test_without_drafting_every_step_delivers_one_token() -> None:
    assert acceptance_length(count_steps("none", 128)) == 1.0
    assert drafted_acceptance_length(count_steps("none", 128)) is None
    assert draft_acceptance_rate(count_steps("none", 128)) is None


def test_an_output_of_one_token_has_no_acceptance_length() -> None:
    assert acceptance_length(count_steps("none", 1)) is None


def test_steps_need_counters_unless_nothing_is_drafted() -> None:
    with pytest.raises(ValueError, match="method eagle3"):
        count_steps("eagle3", 128)


def test_ngram_steps_without_a_draft_count_as_steps() -> None:
    """Two steps had a draft and accepted 5 tokens; 127 - 5 tokens came one at a time."""
    counts = count_steps("ngram", 128, counters([3, 2]))
    assert counts.steps == 122
    assert acceptance_length(counts) == 127 / 122
    assert drafted_acceptance_length(counts) == 3.5


def test_ngram_acceptance_length_is_an_upper_bound_by_one_truncated_step_a_request() -> None:
    counts = count_steps("ngram", 128, counters([3, 2]))
    assert counts.uncertain_steps == DRAFT_LENGTH
    assert acceptance_length_low(counts) == 127 / 125


def test_where_every_step_drafts_nothing_is_uncertain() -> None:
    counts = counts_of([2, 0, 3], overshoot=2)
    assert counts.uncertain_steps == 0
    assert acceptance_length_low(counts) == acceptance_length(counts)


@given(accepted_by_step, st.integers(0, 30), st.integers(0, DRAFT_LENGTH))
def test_the_bounds_of_ngram_hold_the_truth(drafted: list[int], undrafted: int, overshoot: int) -> None:
    overshoot = min(overshoot, drafted[-1])
    output_tokens = 1 + sum(drafted) + len(drafted) + undrafted - overshoot
    truth = (output_tokens - 1) / (len(drafted) + undrafted)
    counts = count_steps("ngram", output_tokens, counters(drafted))
    high, low = acceptance_length(counts), acceptance_length_low(counts)
    assert high is not None
    assert low is not None
    assert low - 1e-12 <= truth <= high + 1e-12
    assert inconsistency("ngram", output_tokens, counters(drafted)) is None


ngram_requests = st.lists(
    st.tuples(accepted_by_step, st.integers(0, 20), st.integers(0, DRAFT_LENGTH)), min_size=1, max_size=8
)


def told_by_responses(drafted: list[int], undrafted: int, overshoot: int) -> tuple[StepCounts, int]:
    """What a response tells of a request with steps of both kinds, and how many steps it had."""
    overshoot = min(overshoot, drafted[-1])
    output_tokens = 1 + sum(1 + accepted for accepted in drafted) + undrafted - overshoot
    return count_steps("ngram", output_tokens, counters(drafted)), len(drafted) + undrafted


@given(st.lists(ngram_requests, min_size=1, max_size=3))
def test_a_server_that_tells_all_steps_makes_those_of_its_requests_exact(
    rounds: list[list[tuple[list[int], int, int]]],
) -> None:
    told = [[told_by_responses(*asked) for asked in requests] for requests in rounds]
    whole = total(counts for requests in told for counts, _ in requests)
    on_server = []
    for asked, requests in zip(rounds, told, strict=True):
        drafted = [accepted for steps, _, _ in asked for accepted in steps]
        of_round = replace(
            counters(drafted),
            decode_steps=sum(steps for _, steps in requests),
            output_tokens=sum(counts.output_tokens for counts, _ in requests),
        )
        assert disagreement(total(counts for counts, _ in requests), of_round) is None
        on_server.append(of_round)
    exact = with_steps_of_server(whole, on_server)
    steps = sum(steps for requests in told for _, steps in requests)
    assert (exact.steps, exact.uncertain_steps) == (steps, 0)
    assert acceptance_length(exact) == whole.decode_tokens / steps
    assert drafted_acceptance_length(exact) == drafted_acceptance_length(whole)


def test_steps_stay_open_where_a_server_did_not_tell_them_in_every_round() -> None:
    counts, steps = told_by_responses([2, 0, 3], 4, 3)
    assert counts.uncertain_steps > 0
    told = replace(counters([2, 0, 3]), decode_steps=steps)
    for on_server in ([], [None], [told, None], [told, counters([2, 0, 3])]):
        assert with_steps_of_server(counts, on_server) == counts


def test_steps_that_responses_tell_are_left_as_they_are() -> None:
    counts = counts_of([2, 0, 3])
    assert with_steps_of_server(counts, [replace(counters([2, 0, 3]), decode_steps=7)]) == counts


@pytest.mark.parametrize(
    ("of_server", "words"),
    [
        (
            Counters("prometheus", 3, 9, 5, (2, 2, 1), 3, output_tokens=20),
            "the server counted 20 output tokens, and its responses 13",
        ),
        (
            Counters("prometheus", 4, 12, 9, (4, 3, 2), 3),
            "the server counted 9 accepted drafts, and its responses 5",
        ),
        (
            Counters("prometheus", 3, 9, 5, (2, 2, 1), 3, decode_steps=6),
            "the server counted 6 decode steps, and its responses allow 7 to 10",
        ),
        (
            Counters("prometheus", 3, 9, 5, (2, 2, 1), 3, decode_steps=11),
            "the server counted 11 decode steps, and its responses allow 7 to 10",
        ),
    ],
)
def test_a_server_that_counted_something_else_than_its_requests(of_server: Counters, words: str) -> None:
    counts, _ = told_by_responses([2, 0, 3], 4, 0)
    assert disagreement(counts, of_server) == words


def test_an_engine_that_counts_all_decode_steps_leaves_nothing_uncertain() -> None:
    """Two of 124 steps had a draft, and the last one lost 2 tokens."""
    told = replace(counters([3, 2], source="prometheus"), decode_steps=124)
    counts = count_steps("ngram", 128, told)
    assert (counts.steps, counts.uncertain_steps) == (124, 0)
    assert acceptance_length(counts) == 127 / 124
    assert inconsistency("ngram", 128, told) is None


def test_a_step_without_a_draft_after_a_preemption_is_a_step_too() -> None:
    record = request(accepted_by_step=[2, 0, 3])
    counts = count_steps("eagle3", record.output_tokens + 1, record.counters)
    assert counts.steps == 4
    assert counts.drafted_steps == 3


def test_rates_of_the_published_histogram() -> None:
    """The run of SPEED-Bench's blog post: Llama-3.3-70B with EAGLE3, draft length 3."""
    published = (57385, 36968, 24441, 61182)
    at_least = tuple(accumulate(reversed(published)))[::-1]
    steps, positions = at_least[0], at_least[1:]
    conditional = conditional_acceptance_rate(steps, positions)
    assert [round(rate, 3) for rate in conditional] == [0.681, 0.698, 0.715]
    assert histogram(steps, positions) == published
    assert 1 + sum(joint_acceptance_rate(steps, positions)) == pytest.approx(2.4968, abs=5e-5)


def test_conditional_rates_end_where_no_draft_ever_came() -> None:
    assert conditional_acceptance_rate(10, (4, 0, 0)) == (0.4, 0.0)
    assert conditional_acceptance_rate(0, (0, 0, 0)) == ()
    assert joint_acceptance_rate(0, (0, 0, 0)) == ()


@given(accepted_by_step)
def test_acceptance_rates_and_histogram_tell_the_same_story(steps: list[int]) -> None:
    counts = counts_of(steps)
    positions = counts.accepted_per_position
    joint = joint_acceptance_rate(len(steps), positions)
    products = tuple(
        accumulate(conditional_acceptance_rate(len(steps), positions), lambda left, right: left * right)
    )
    assert joint[: len(products)] == pytest.approx(products)
    assert drafted_acceptance_length(counts) == pytest.approx(1 + sum(joint))
    bins = histogram(len(steps), positions)
    assert sum(bins) == len(steps)
    assert sum(number * steps_with for number, steps_with in enumerate(bins)) == counts.accepted_tokens
    assert draft_acceptance_rate(counts) == pytest.approx(sum(steps) / (DRAFT_LENGTH * len(steps)))


@given(st.lists(accepted_by_step, min_size=1, max_size=6))
def test_pooled_acceptance_length_lies_between_those_of_the_requests(requests: list[list[int]]) -> None:
    parts = [counts_of(steps) for steps in requests]
    lengths = [length for part in parts if (length := acceptance_length(part)) is not None]
    pooled = acceptance_length(total(parts))
    assert pooled is not None
    assert min(lengths) - 1e-12 <= pooled <= max(lengths) + 1e-12


@given(accepted_by_step, st.integers(1, 5))
def test_repeating_a_request_leaves_its_acceptance_length(steps: list[int], times: int) -> None:
    assert acceptance_length(total([counts_of(steps)] * times)) == acceptance_length(counts_of(steps))


def test_totals_pad_shorter_drafts_with_positions_never_accepted() -> None:
    short = count_steps("ngram", 3, counters([1], draft_length=1))
    long = count_steps("ngram", 5, counters([3], draft_length=3))
    assert total([short, long]).accepted_per_position == (2, 1, 1)


def test_speed_bench_averages_requests_and_takes_the_prefill_token_for_a_step() -> None:
    easy, hard = counts_of([3, 3, 3]), counts_of([0])
    assert mean_of_requests_acceptance_length([easy, hard]) == (13 / 4 + 2 / 2) / 2
    assert acceptance_length(total([easy, hard])) == 13 / 4
    assert mean_of_requests_acceptance_length([]) is None


@given(accepted_by_step, st.integers(0, DRAFT_LENGTH))
def test_counters_of_a_real_output_are_consistent(steps: list[int], overshoot: int) -> None:
    record = request(accepted_by_step=steps, overshoot=min(overshoot, steps[-1]))
    assert record.counters is not None
    assert inconsistency("draft_model", record.output_tokens, record.counters) is None


GOOD = counters([2, 0, 3])
"""Of an output of 9 tokens."""


@pytest.mark.parametrize(
    ("method", "output_tokens", "wrong", "why"),
    [
        ("eagle3", 5, GOOD, "the last step can lose 3 at most"),
        (
            "eagle3",
            90,
            GOOD,
            "leave 81 of 89 tokens unexplained, and with method eagle3 every step has a draft",
        ),
        ("eagle3", 9, replace(GOOD, accepted_tokens=4), "4 drafts accepted, but 5 summed over the positions"),
        (
            "eagle3",
            9,
            replace(GOOD, accepted_per_position=(1, 2, 2)),
            "accepted more often than the one before",
        ),
        (
            "eagle3",
            9,
            replace(GOOD, accepted_per_position=(4, 1, 0)),
            "accepted more often than the one before",
        ),
        ("eagle3", 9, replace(GOOD, drafted_tokens=4), "5 drafts accepted of 4"),
        ("eagle3", 9, replace(GOOD, drafted_steps=-1), "negative"),
        ("eagle3", 3, GOOD, "3 steps for 2 tokens after the first"),
        ("ngram", 5, GOOD, "the last step can lose 3 at most"),
        ("ngram", 9, replace(GOOD, decode_steps=2), "3 steps had a draft, of 2 steps"),
        (
            "ngram",
            90,
            replace(GOOD, decode_steps=40),
            "40 steps and 5 accepted drafts leave 44 of 89 tokens unexplained",
        ),
        ("ngram", 9, replace(GOOD, decode_steps=9), "9 steps for 8 tokens after the first"),
        ("none", 9, GOOD, "3 steps had a draft, with method none"),
    ],
)
def test_counters_that_cannot_belong_to_the_output(
    method: str, output_tokens: int, wrong: object, why: str
) -> None:
    assert isinstance(wrong, type(GOOD))
    found = inconsistency(method, output_tokens, wrong)
    assert found is not None
    assert why in found


def test_a_server_may_lose_one_truncated_step_a_request() -> None:
    pooled = replace(counters([3] * 10), source="prometheus")
    assert inconsistency("eagle3", 2 + 40 - 6, pooled, requests=2) is None
    assert inconsistency("eagle3", 2 + 40 - 7, pooled, requests=2) is not None
