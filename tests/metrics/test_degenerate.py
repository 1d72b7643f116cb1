"""What is taken for a loop or a trivial response, and what is not."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pytest_speedbench.data.sample import passages
from pytest_speedbench.metrics.degenerate import is_trivial, repeated_share, repeats_itself
from tests.engines.reference.decode import chat, decoding, generate, models
from tests.engines.reference.texts import STORY


def text(tokens: int, seed: int = 0) -> list[int]:
    """Token ids that follow no pattern, common ones oftener than rare ones."""
    return [int(token) for token in np.random.default_rng(seed).zipf(1.3, size=tokens) % 50_000]


@given(
    st.integers(1, 60), st.integers(3, 12), st.floats(0.0, 1.0), st.integers(0, 2**32), st.integers(64, 1024)
)
@settings(deadline=None)
def test_a_cycle_of_any_period_that_comes_three_times_and_fills_half_of_the_output(
    period: int, rounds: int, healthy: float, seed: int, least: int
) -> None:
    rounds = max(rounds, -(-max(least // 2, 48) // period))
    loop = text(period, seed) * rounds
    output = text(int(healthy * len(loop)), seed + 1) + loop
    assume(len(output) >= 64)
    # a cycle that is a shorter cycle itself is a loop as well, and a chance agreement before it only adds to it
    assert repeats_itself(output)
    assert repeated_share(output) >= len(loop) / len(output)


@given(st.lists(st.integers(0, 3), max_size=300) | st.lists(st.integers(0, 2**31 - 1), max_size=300))
@settings(deadline=None)
def test_the_share_lies_between_0_and_1(token_ids: list[int]) -> None:
    assert 0.0 <= repeated_share(token_ids) <= 1.0


@given(st.lists(st.integers(0, 3), min_size=64, max_size=300), st.integers(0, 2**31), st.integers(1, 2**20))
@settings(deadline=None)
def test_what_ids_the_tokens_have_does_not_matter(token_ids: list[int], offset: int, factor: int) -> None:
    assert repeated_share([offset + factor * token for token in token_ids]) == repeated_share(token_ids)


def test_a_long_cycle_that_is_full_of_repetitions_itself() -> None:
    """Its own 3-grams come again at ten distances, all of them commoner than the cycle's."""
    chance = random.Random(0)
    lengths = [chance.randint(1, 10) for _ in range(30)]
    cycle = [token for row, length in enumerate(lengths) for token in (*text(100), *text(length, 1 + row))]

    assert repeated_share(cycle) < 0.5
    assert repeated_share(cycle * 4) > 0.99


def test_a_loop_in_a_third_of_the_output_is_measured_but_not_judged() -> None:
    output = text(400) + text(10, 1) * 20
    assert repeated_share(output) == pytest.approx(1 / 3, abs=0.02)
    assert not repeats_itself(output)


def test_a_loop_in_the_middle_counts_as_well() -> None:
    output = text(100) + text(7, 1) * 60 + text(100, 2)
    assert repeated_share(output) == pytest.approx(420 / 620, abs=0.05)


def test_a_passage_that_is_quoted_once_is_no_loop() -> None:
    assert repeated_share(text(200) * 2) == 0.0


def test_a_loop_that_counts() -> None:
    sentence = text(12)
    output = [token for number in range(40) for token in (*sentence, 60_000 + number)]
    assert repeated_share(output) > 0.95


def test_a_loop_whose_words_change_now_and_then() -> None:
    chance = random.Random(0)
    output = [
        60_000 + number if chance.random() < 0.05 else token for number, token in enumerate(text(20) * 20)
    ]
    assert repeats_itself(output)


@pytest.mark.parametrize("tokens", [0, 1, 2, 63])
def test_short_outputs_are_never_judged(tokens: int) -> None:
    assert repeated_share([7] * tokens) == 0.0


def test_one_token_over_and_over() -> None:
    assert repeated_share([7] * 64) == 1.0


@pytest.mark.parametrize("tokens", [64, 128, 256, 512, 4096])
def test_text_without_a_pattern(tokens: int) -> None:
    assert repeated_share(text(tokens)) < 0.05


def test_words_of_the_sample_are_no_loops() -> None:
    """Of the prose and code there; low entropy is tables and logs, which loop by design."""
    shares = []
    for passage in passages():
        if passage.tier != "low_entropy":
            names: dict[str, int] = {}
            words = re.findall(r"\w+|\W", passage.text)
            shares.append(repeated_share([names.setdefault(word, len(names)) for word in words]))
    assert len(shares) > 20
    assert max(shares) < 0.5


@pytest.mark.parametrize("method", ["none", "ngram", "draft_model"])
def test_the_reference_engine_does_not_loop_unless_told_to(method: str) -> None:
    healthy, _ = generate(decoding(chat(STORY), method), 512)
    looping, _ = generate(decoding(chat(STORY), method, pair=models(loop=True)), 512)
    assert [repeats_itself(healthy[:length]) for length in (64, 128, 256, 512)] == [False] * 4
    assert [repeats_itself(looping[:length]) for length in (64, 128, 256, 512)] == [True] * 4


@pytest.mark.parametrize(
    ("tokens", "baseline_tokens", "trivial"),
    [
        (99, 400, True),
        (100, 400, False),
        (400, 400, False),
        (4000, 400, False),
        (1, 32, True),
        (1, 31, False),
        (0, 0, False),
        (7.5, 32, True),
    ],
)
def test_a_trivial_response_is_below_a_quarter_of_the_baseline_s(
    tokens: float, baseline_tokens: float, trivial: bool
) -> None:
    assert is_trivial(tokens, baseline_tokens) is trivial
