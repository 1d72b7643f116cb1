from __future__ import annotations

import pytest

from pytest_speedbench.engines.reference.models import LOOP_PERIOD
from pytest_speedbench.engines.reference.vocabulary import FIRST_BYTE, built_in
from tests.engines.reference.decode import acceptance_length, chat, decoding, generate, models
from tests.engines.reference.texts import CODE, QUESTION, STORY, THAI

TEXTS = [CODE, STORY, THAI, QUESTION]


def pooled_acceptance_length(text: str, method: str, seeds: int = 12) -> float:
    steps = []
    for seed in range(seeds):
        # A seed changes nothing greedy but the drafts, so the text is varied too.
        steps += generate(decoding(chat(f"{seed}. {text}"), method, seed=seed), 128)[1]
    return acceptance_length(steps)


def test_code_is_easier_to_draft_than_a_scene_and_a_scene_than_thai() -> None:
    code, story, thai = (pooled_acceptance_length(text, "draft_model") for text in (CODE, STORY, THAI))
    assert code > story + 0.4
    assert story > thai + 0.1
    assert 2.6 < code < 3.4
    assert 1.4 < thai < 2.1


def test_prompt_lookup_finds_more_in_a_text_that_repeats_itself() -> None:
    assert pooled_acceptance_length(CODE, "ngram") > pooled_acceptance_length(QUESTION, "ngram") + 0.05


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("length", [64, 512])
def test_output_does_not_run_in_circles(text: str, length: int) -> None:
    tokens, _ = generate(decoding(chat(text), "none"), length)
    runs = [tuple(tokens[at : at + 4]) for at in range(length - 3)]
    assert len(set(runs)) / len(runs) > 0.5


@pytest.mark.parametrize("text", [*TEXTS, "\udc80 lone", "\x00\x01\x02", "한국어 뷁 🙂 텍스트", "x"])
def test_every_token_of_an_output_is_readable_by_itself(text: str) -> None:
    tokens, _ = generate(decoding(chat(text), "draft_model", temperature=1.0), 300)
    for token in tokens:
        assert token >= FIRST_BYTE
        shown = built_in().decode([token])
        assert "\N{REPLACEMENT CHARACTER}" not in shown
        assert all(char.isprintable() or char in "\n\t" for char in shown)


def test_an_output_is_in_the_script_of_its_prompt() -> None:
    tokens, _ = generate(decoding(chat(THAI), "none"), 200)
    letters = [char for char in built_in().decode(tokens) if char.isalpha()]
    assert sum("\u0e00" <= char <= "\u0e7f" for char in letters) > 0.4 * len(letters)


def test_candidates_are_distinct_and_fewer_are_the_ends_of_more() -> None:
    context = models().start(chat(CODE))
    for token in built_in().encode(" remove the oldest entry, then return the value"):
        eight = models().outlook(context, 8).candidates
        two = models().outlook(context, 2).candidates
        assert len(set(eight)) == 8
        assert two == (eight[0], eight[-1])
        context = models().extend(context, token)


def test_what_comes_next_depends_on_all_that_stands_before() -> None:
    tail = built_in().encode(" and then the")
    one = models().start(built_in().encode(" Once upon a time") + tail)
    other = models().start(built_in().encode(" Twice upon a time") + tail)
    assert models().outlook(one, 8) != models().outlook(other, 8)


def test_extending_a_context_leaves_it_as_it_was() -> None:
    context = models().start([300, 301])
    before = tuple(context)
    models().extend(context, 302)
    assert tuple(context) == before


def test_a_loop_repeats_its_last_tokens_and_accepts_every_draft() -> None:
    tokens, steps = generate(decoding(chat(STORY), "draft_model", pair=models(loop=True)), 101)
    assert all(tokens[at] == tokens[at % LOOP_PERIOD] for at in range(101))
    assert {step.accepted for step in steps[2:]} == {3}
