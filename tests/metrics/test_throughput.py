from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.load.records import Arrivals, RequestRecord, RoundRecord
from pytest_speedbench.metrics.throughput import (
    DIP_S,
    Interval,
    full_batch,
    in_flight,
    output_tps,
    steady_output_tps,
    user_tps,
)
from tests.metrics.records import request, round_of


def plain(sent_s: float, ended_s: float, *arrivals: tuple[float, int]) -> RequestRecord:
    return RequestRecord(
        question_id="q",
        turn=0,
        repeat=0,
        sent_s=sent_s,
        ended_s=ended_s,
        arrivals=Arrivals.of(arrivals),
        output_tokens=sum(tokens for _, tokens in arrivals),
    )


def test_output_tps_is_all_tokens_over_the_time_from_first_send_to_last_end() -> None:
    round_ = round_of(plain(0, 3, (1, 1), (3, 4)), plain(1, 5, (2, 1), (5, 9)), batch_size=2)
    assert output_tps(round_) == 15 / 5


def test_output_tps_leaves_out_the_tokens_of_failed_requests_but_not_their_time() -> None:
    failed = replace(plain(0, 10, (1, 5)), error="connection lost")
    assert output_tps(round_of(plain(0, 2, (2, 4)), failed)) == 4 / 10
    assert output_tps(round_of(failed)) is None
    assert output_tps(round_of()) is None


def test_requests_in_flight_over_time() -> None:
    curve = in_flight([plain(0, 4), plain(1, 3), plain(3, 6)])
    assert curve == (
        Interval(0, 1, 1),
        Interval(1, 3, 2),
        Interval(3, 4, 2),
        Interval(4, 6, 1),
    )


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 10)), min_size=1, max_size=12),
)
def test_the_area_under_the_curve_is_the_time_of_all_requests(spans: list[tuple[int, int]]) -> None:
    requests = [plain(start, start + length) for start, length in spans]
    area = sum((part.end_s - part.start_s) * part.in_flight for part in in_flight(requests))
    assert area == sum(length for _, length in spans)


def test_steady_tps_counts_the_time_with_a_full_batch_only() -> None:
    """Both are in flight from 1 to 4: 3 + 2 tokens arrive then, in 3 seconds."""
    first = plain(0, 4, (0.5, 7), (2, 3))
    second = plain(1, 6, (3, 2), (6, 9))
    assert steady_output_tps([round_of(first, second, batch_size=2)]) == 5 / 3


def test_a_dip_in_which_a_slot_changes_its_prompt_is_part_of_the_steady_state() -> None:
    """One step of four streams, read one after the other; the first to end has its successor 8 ms later.

    The tokens that are read in these 8 ms are those of a whole step of 1 s. Leaving them out with the 8 ms would
    take a quarter of the tokens for nothing.
    """
    steps = [plain(0, 3, *((step + index / 500, 1) for step in (1, 2)), (3, 1)) for index in (1, 2, 3)]
    ends, follows = plain(0, 2, (1, 1), (2, 1)), plain(2.008, 3, (3, 1))
    round_ = round_of(ends, *steps, follows, batch_size=4)
    assert full_batch(round_) == ((0, 3),)
    assert steady_output_tps([round_]) == 12 / 3


def test_a_longer_dip_is_not() -> None:
    first, second = plain(0, 2, (1, 1), (2, 1)), plain(2 + 2 * DIP_S, 4, (3, 8))
    assert full_batch(round_of(first, second)) == ((0, 2), (2 + 2 * DIP_S, 4))
    assert steady_output_tps([round_of(first, second)]) == 10 / (4 - 2 * DIP_S)


def steady_by_hand(round_: RoundRecord) -> float | None:
    """As the definition reads, one token after the other."""
    stretches = full_batch(round_)
    seconds = sum(end - start for start, end in stretches)
    tokens = sum(
        arrival.tokens
        for request in round_.requests
        for arrival in request.arrivals
        if any(start <= arrival.received_s <= end for start, end in stretches)
    )
    return tokens / seconds if seconds else None


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(1, 10), st.lists(st.integers(0, 10), max_size=5)),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 4),
)
def test_steady_tps_is_what_its_definition_says(
    spans: list[tuple[int, int, list[int]]], batch_size: int
) -> None:
    requests = [
        plain(start, start + length, *((start + min(at, length), 3) for at in sorted(moments)))
        for start, length, moments in spans
    ]
    round_ = round_of(*requests, batch_size=batch_size)
    assert steady_output_tps([round_]) == steady_by_hand(round_)


def test_steady_tps_pools_rounds() -> None:
    one = round_of(plain(0, 1, (1, 3)))
    other = round_of(plain(10, 13, (12, 1)))
    assert steady_output_tps([one, other]) == 4 / 4


def test_a_batch_that_was_never_full_has_no_steady_tps() -> None:
    assert steady_output_tps([round_of(plain(0, 1, (1, 3)), batch_size=2)]) is None


def test_a_token_between_two_full_intervals_counts_once() -> None:
    """The batch is full until 2 and, with the next request sent at once, from 2 on."""
    first, second, third = plain(0, 2, (2, 5)), plain(0, 4, (4, 1)), plain(2, 4, (3, 1))
    assert steady_output_tps([round_of(first, second, third, batch_size=2)]) == 7 / 4


def test_user_tps_is_the_speed_of_decoding_alone() -> None:
    record = request(accepted_by_step=[1, 1, 1, 1], ttft_s=100, step_s=0.1)
    assert user_tps([record]) == pytest.approx(8 / 0.4)


def test_user_tps_weighs_requests_by_their_time() -> None:
    fast, slow = plain(0, 1, (0, 1), (1, 30)), plain(0, 9, (0, 1), (9, 10))
    assert user_tps([fast, slow]) == 40 / 10


def test_tokens_that_arrive_all_at_once_cannot_be_timed() -> None:
    at_once = plain(0, 1, (1, 50))
    assert user_tps([at_once]) is None
    assert user_tps([at_once, plain(0, 2, (0, 1), (2, 8))]) == 4
