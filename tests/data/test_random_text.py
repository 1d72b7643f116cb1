"""Random tokens are told from text, in any script."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.data import load
from pytest_speedbench.data.random_text import disorder, looks_random
from pytest_speedbench.engines.reference.vocabulary import FIRST_PIECE, built_in
from pytest_speedbench.speed_bench import ENTROPY_TIERS, INPUT_LENGTHS


def random_tokens(seed: int, tokens: int = 1000) -> str:
    vocabulary = built_in()
    chance = random.Random(seed)
    return vocabulary.decode([chance.randrange(FIRST_PIECE, len(vocabulary)) for _ in range(tokens)])


def random_characters(first: int, last: int, seed: int, characters: int = 2000) -> str:
    chance = random.Random(seed)
    return "".join(chr(chance.randint(first, last)) for _ in range(characters))


@pytest.mark.parametrize("tokens", [600, 1000, 8000])
def test_random_tokens(tokens: int) -> None:
    assert looks_random([random_tokens(seed, tokens) for seed in range(8)])


@pytest.mark.parametrize(
    ("first", "last"),
    [(0x61, 0x7A), (0x4E00, 0x9FFF), (0x627, 0x64A), (0x905, 0x939), (0x1F600, 0x1F64F), (0x21, 0xFFFF)],
    ids=["latin", "cjk", "arabic", "hindi", "emoji", "all, half surrogates among them"],
)
def test_random_characters_of_any_script(first: int, last: int) -> None:
    assert looks_random([random_characters(first, last, seed) for seed in range(4)])


@pytest.mark.parametrize("tier", ENTROPY_TIERS)
@pytest.mark.parametrize("split", INPUT_LENGTHS)
def test_the_sample_is_text(split: str, tier: str) -> None:
    assert not looks_random([prompt.turns[0] for prompt in load(split, None).of_category(tier)])


def test_text_of_other_scripts_than_latin() -> None:
    multilingual = load("qualitative", None, ("multilingual",)).prompts
    joined = "\n".join(prompt.turns[0] for prompt in multilingual)
    assert disorder(joined) < 0.82


def test_short_texts_and_few_texts_are_not_judged() -> None:
    assert not looks_random([])
    assert not looks_random([random_tokens(seed, 100) for seed in range(8)])
    assert not looks_random([random_tokens(seed) for seed in range(2)])
    assert looks_random([random_tokens(seed) for seed in range(3)])


def test_a_packed_file_among_texts_makes_them_no_random_prompts() -> None:
    texts = [prompt.turns[0] for prompt in load("throughput_1k", None, ("mixed",)).prompts]
    assert not looks_random([*texts[:5], *(random_characters(0x21, 0x7E, seed) for seed in range(3))])


def test_prompts_from_all_over_are_looked_at() -> None:
    texts = [prompt.turns[0] for prompt in load("throughput_1k", None, ("mixed",)).prompts]
    assert looks_random([*texts, *(random_tokens(seed) for seed in range(40))])


@given(st.text(min_size=1, max_size=300))
def test_any_text_has_a_disorder(text: str) -> None:
    assert 0.0 < disorder(text) < 2.0
