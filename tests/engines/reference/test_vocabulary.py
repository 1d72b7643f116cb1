from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.engines.reference import vocabulary
from pytest_speedbench.engines.reference.vocabulary import (
    BOS,
    END,
    FIRST_PIECE,
    ROLES,
    Vocabulary,
    built_in,
    read_pieces,
)
from tests.engines.reference.texts import CODE, QUESTION, STORY, THAI

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=200)
"""Every code point, lone surrogates included: JSON can carry them."""


@given(ANY_TEXT)
def test_every_text_comes_back(text: str) -> None:
    assert built_in().decode(built_in().encode(text)) == text


@given(
    st.lists(
        st.sampled_from([" ", "\n", "\t", "a", "the", " the", "'s", "_", "9", "é", "ท", "ี", "漢", "🙂"]),
        max_size=40,
    )
)
def test_every_mixture_of_spaces_and_scripts_comes_back(parts: list[str]) -> None:
    text = "".join(parts)
    assert built_in().decode(built_in().encode(text)) == text


@given(st.text(max_size=50))
def test_no_text_yields_a_special_token(text: str) -> None:
    tokens = built_in().encode("<|end|><|bos|>" + text)
    assert min(tokens) >= vocabulary.FIRST_BYTE


@given(st.lists(st.integers(0, len(built_in()) - 1), max_size=50))
def test_any_token_ids_give_a_text(tokens: list[int]) -> None:
    built_in().decode(tokens).encode("utf-8", "surrogatepass")


def test_every_piece_of_the_file_can_come_up() -> None:
    vocabulary = built_in()
    unreachable = [
        piece
        for token, piece in enumerate(vocabulary.pieces, FIRST_PIECE)
        if vocabulary.encode(piece) != [token]
    ]
    assert unreachable == []


def test_the_longest_piece_is_taken() -> None:
    small = Vocabulary([" th", " the", "ory"])
    assert [small.decode([token]) for token in small.encode(" theory")] == [" the", "ory"]


def test_what_no_piece_covers_becomes_bytes() -> None:
    assert built_in().encode("🙂") == [vocabulary.FIRST_BYTE + byte for byte in "🙂".encode()]


def test_english_takes_about_four_characters_a_token() -> None:
    prose = (
        "The harbour master kept a small brass key on a cord around his neck, and nobody in the town knew which "
        "door it opened. Some people said that it belonged to the old customs house, others that it had come "
        "with a ship from the east and would fit nothing on this side of the sea. When he died, in the winter of "
        "the great storm, the key was found on his table next to a letter that explained everything."
    )
    assert 3.5 < len(prose) / len(built_in().encode(prose)) < 4.8


def test_code_indentation_is_one_token() -> None:
    assert len(built_in().encode("\n        return")) == 2


def test_a_chat_is_one_bos_then_role_text_and_end_per_message() -> None:
    vocabulary = built_in()
    tokens = vocabulary.chat([("user", "Hello"), ("assistant", "Yes"), ("user", "Why?")])
    shown = vocabulary.decode(tokens, special=True)
    assert shown == "<|bos|><|user|>Hello<|end|><|assistant|>Yes<|end|><|user|>Why?<|end|><|assistant|>"
    assert tokens.count(BOS) == 1
    assert tokens.count(END) == 3
    assert vocabulary.decode(tokens) == "HelloYesWhy?"


def test_a_chat_without_generation_prompt_ends_with_the_message() -> None:
    assert built_in().chat([("user", "Hello")], generation_prompt=False)[-1] == END


def test_an_unknown_role_is_refused() -> None:
    assert set(ROLES) == {"system", "user", "assistant"}
    with pytest.raises(KeyError):
        built_in().chat([("robot", "Hello")])


def test_a_piece_that_stands_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'ab' stands twice"):
        Vocabulary(["ab", "cd", "ab"])


def test_the_file_shows_what_a_line_cannot_hold(tmp_path: Path) -> None:
    (tmp_path / "pieces.txt").write_text("\\n \\s\n\\t\\\\\n word\n", encoding="utf-8")
    assert read_pieces(tmp_path / "pieces.txt") == ["\n  ", "\t\\", " word"]


@pytest.mark.parametrize("text", [CODE, STORY, THAI, QUESTION])
def test_the_cache_changes_nothing(text: str) -> None:
    fresh = Vocabulary(built_in().pieces)
    assert fresh.encode(text) == fresh.encode(text) == built_in().encode(text)
