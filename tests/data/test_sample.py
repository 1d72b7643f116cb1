"""What the bundled sample promises."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
import zlib
from collections import Counter
from typing import Any

import pytest

from pytest_speedbench.data import Prompt, load
from pytest_speedbench.data.rows import PLACEHOLDER
from pytest_speedbench.data.sample import FOLDER, estimated_tokens, passages
from pytest_speedbench.speed_bench import DOMAINS, ENTROPY_TIERS, INPUT_LENGTHS, SPLITS, categories_of

SCHEMA = {
    "question_id": str,
    "category": str,
    "sub_category": str,
    "turns": list,
    "multiturn": bool,
    "source": str,
    "src_id": str,
    "difficulty": str,
}


def qualitative_rows() -> list[dict[str, Any]]:
    lines = (FOLDER / "qualitative.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def sample(split: str) -> tuple[Prompt, ...]:
    return load(split, None).prompts


@pytest.mark.parametrize("split", SPLITS)
def test_eight_prompts_in_every_category_of_every_split(split: str) -> None:
    dataset = load(split, None)

    assert Counter(prompt.category for prompt in dataset.prompts) == dict.fromkeys(categories_of(split), 8)
    assert dataset.source == "sample"
    assert dataset.warnings == ()


def test_ids_and_digests_are_unique_over_all_splits() -> None:
    prompts = [prompt for split in SPLITS for prompt in sample(split)]

    assert len({prompt.question_id for prompt in prompts}) == len(prompts) == 88 + 5 * 24
    assert len({prompt.digest for prompt in prompts}) == len(prompts)
    assert all(prompt.question_id.startswith("sample-") for prompt in prompts)


@pytest.mark.parametrize("split", SPLITS)
def test_turns_are_texts_and_no_placeholders(split: str) -> None:
    for prompt in sample(split):
        assert 1 <= len(prompt.turns) <= 5
        assert all(turn.strip() and PLACEHOLDER not in turn for turn in prompt.turns)


@pytest.mark.parametrize("split", SPLITS)
def test_no_two_prompts_begin_alike(split: str) -> None:
    beginnings = Counter(prompt.turns[0][:32] for prompt in sample(split))

    assert [beginning for beginning, count in beginnings.items() if count > 1] == []


def test_throughput_prompts_differ_from_the_first_characters_on_across_splits_too() -> None:
    beginnings = [prompt.turns[0][:8] for split in INPUT_LENGTHS for prompt in sample(split)]

    assert len(set(beginnings)) == len(beginnings)


def test_the_qualitative_sample_has_the_schema_of_speed_bench() -> None:
    for fields in qualitative_rows():
        assert {name: type(value) for name, value in fields.items()} == SCHEMA
        assert fields["source"] == "pytest-speedbench sample"
        assert fields["multiturn"] is (len(fields["turns"]) > 1)
        assert re.fullmatch(rf"sample-{fields['category']}-\d\d", fields["question_id"])


def test_the_qualitative_sample_is_sorted_by_category_as_speed_bench_is() -> None:
    categories = [fields["category"] for fields in qualitative_rows()]

    assert categories == sorted(categories) == [domain for domain in DOMAINS for _ in range(8)]


def test_at_least_16_conversations_over_several_categories() -> None:
    conversations = [prompt for prompt in sample("qualitative") if len(prompt.turns) > 1]

    assert len(conversations) >= 16
    assert len({prompt.category for prompt in conversations}) >= 8
    assert max(len(prompt.turns) for prompt in conversations) == 5


def test_eight_languages_and_four_scripts_beside_latin() -> None:
    rows = [fields for fields in qualitative_rows() if fields["category"] == "multilingual"]
    scripts = {
        unicodedata.name(character).split()[0]
        for fields in rows
        for character in "".join(fields["turns"])
        if character.isalpha()
    }

    assert len({fields["sub_category"] for fields in rows}) == 8
    assert {"CJK", "HIRAGANA", "HANGUL", "ARABIC", "DEVANAGARI", "CYRILLIC"} <= scripts


def test_passages_to_summarize_have_150_to_400_words() -> None:
    for prompt in load("qualitative", None, ("summarization",)).prompts:
        assert 150 <= len(prompt.turns[0].split()) <= 400, prompt.question_id


def test_coding_prompts_show_code_in_several_languages() -> None:
    text = "\n".join(prompt.turns[0] for prompt in load("qualitative", None, ("coding",)).prompts)

    assert len(set(re.findall(r"^```(\w+)$", text, re.MULTILINE))) >= 5


@pytest.mark.parametrize("split", INPUT_LENGTHS)
def test_throughput_prompts_have_the_nominal_length_within_2_percent(split: str) -> None:
    for prompt in sample(split):
        [text] = prompt.turns
        assert estimated_tokens(text) == pytest.approx(INPUT_LENGTHS[split], rel=0.02), prompt.question_id


@pytest.mark.parametrize("split", INPUT_LENGTHS)
def test_a_throughput_prompt_asks_about_a_passage_that_it_holds_whole(split: str) -> None:
    by_task = {passage.task: passage for passage in passages()}
    for prompt in sample(split):
        asked = by_task[prompt.turns[0].rpartition("\n\nTask. ")[2].strip()]
        assert asked.tier == prompt.category
        assert asked.text in prompt.turns[0]


def test_no_passage_comes_twice_before_every_other_has_come_once() -> None:
    for prompt in sample("throughput_32k"):
        counts = [
            prompt.turns[0].count(passage.text) for passage in passages() if passage.tier == prompt.category
        ]
        assert max(counts) - min(counts) <= 1, prompt.question_id


def test_the_low_entropy_tier_compresses_far_better_than_the_others() -> None:
    def compressed_share(tier: str) -> float:
        texts = [passage.text.encode() for passage in passages() if passage.tier == tier]
        return sum(len(zlib.compress(text)) / len(text) for text in texts) / len(texts)

    low, mixed, high = (compressed_share(tier) for tier in ENTROPY_TIERS)
    assert low < 0.7 * min(mixed, high)


@pytest.mark.parametrize("split", SPLITS)
def test_loading_twice_gives_the_same(split: str) -> None:
    assert load(split, None) == load(split, None)


def test_the_text_of_the_sample_is_pinned() -> None:
    """Stored baselines name these prompts by digest: whoever changes one has to measure them again."""

    def of_split(split: str) -> str:
        categories = categories_of(split)
        prompts = sorted(sample(split), key=lambda each: (categories.index(each.category), each.question_id))
        return hashlib.sha256("".join(prompt.digest for prompt in prompts).encode()).hexdigest()[:16]

    assert {split: of_split(split) for split in SPLITS} == {
        "qualitative": "99d0513149af13a1",
        "throughput_1k": "f6a64b2ff031ef1d",
        "throughput_2k": "9cc6b02d315e27c0",
        "throughput_8k": "a9e970401ff8362d",
        "throughput_16k": "804dc3f2316d89cc",
        "throughput_32k": "19a5a230a9e7fa37",
    }


def test_the_sample_is_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 250_000


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("speculative", 2), ("a b c", 3), ("12345", 2), ("in 12345", 4), ("x\n\ny", 3), (");\n", 1)],
)
def test_estimated_tokens(text: str, tokens: int) -> None:
    assert estimated_tokens(text) == tokens
