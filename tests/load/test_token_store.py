"""Token ids that a later run takes from the disk: only where they are those that it would make itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from pytest_speedbench.engines.base import Message
from pytest_speedbench.engines.control import Control
from pytest_speedbench.load.conversation import Prepared, prepare
from pytest_speedbench.load.token_store import TokenIds, TokenStore
from tests.load.stub_engine import StubEngine, prompts, sampling

CONTROL = Control("http://127.0.0.1:9")  # the discard port: nothing in these tests calls it
TEXTS = ("one", "two and two")
IDS: tuple[TokenIds, ...] = ((1, 2), (7, 70_000, 7))


class Asked:
    """Makes token ids, and counts how often."""

    def __init__(self, ids: Sequence[TokenIds] = IDS) -> None:
        self.made = ids
        self.times = 0

    def __call__(self) -> Sequence[TokenIds]:
        self.times += 1
        return self.made


def store(folder: Path, model: str = "tiny", version: str = "1.0") -> TokenStore:
    return TokenStore(folder, ("engine", model), version)


def ask(
    kept: TokenStore, asked: Asked, texts: Sequence[str] = TEXTS, first: TokenIds = IDS[0]
) -> Sequence[TokenIds]:
    return [tuple(ids) for ids in kept.ids(texts, first, asked)]


def test_are_made_once(tmp_path: Path) -> None:
    asked = Asked()
    assert ask(store(tmp_path), asked) == list(IDS)
    assert ask(store(tmp_path), asked) == list(IDS)
    assert asked.times == 1


@pytest.mark.parametrize(
    "other",
    [{"model": "large"}, {"version": "1.1"}],
    ids=["model", "version"],
)
def test_are_made_anew_for_another(tmp_path: Path, other: dict[str, str]) -> None:
    asked = Asked()
    ask(store(tmp_path), asked)
    ask(store(tmp_path, **other), asked)
    assert asked.times == 2


def test_are_made_anew_for_other_prompts(tmp_path: Path) -> None:
    asked = Asked()
    ask(store(tmp_path), asked)
    ask(store(tmp_path), asked, texts=("one", "two and three"))
    ask(store(tmp_path), asked, texts=("one",))
    assert asked.times == 3


def test_are_made_anew_where_the_first_prompt_has_others_now(tmp_path: Path) -> None:
    """A chat template that was edited in its place has no other name."""
    ask(store(tmp_path), Asked())
    edited = ((0, 1, 2), (0, 7, 70_000, 7))
    asked = Asked(edited)
    assert ask(store(tmp_path), asked, first=edited[0]) == list(edited)
    assert ask(store(tmp_path), asked, first=edited[0]) == list(edited)
    assert asked.times == 1


def test_of_one_version_are_kept(tmp_path: Path) -> None:
    """A build of every night would fill the disk otherwise."""
    for version in ("1.0", "1.1", "1.2"):
        ask(store(tmp_path, version=version), Asked())
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half a file", b"\x93NUMPY"], ids=repr)
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    ask(store(tmp_path), Asked())
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    asked = Asked()
    assert ask(store(tmp_path), asked) == list(IDS)
    assert ask(store(tmp_path), asked) == list(IDS)
    assert asked.times == 1


def test_whatever_the_disk_does_to_a_file_its_ids_are_the_right_ones(tmp_path: Path) -> None:
    ask(store(tmp_path), Asked())
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for at in range(0, len(whole), 3):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :]):
            file.write_bytes(damaged)
            assert ask(store(tmp_path), Asked()) == list(IDS)


def test_a_folder_that_cannot_be_written_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    asked = Asked()
    assert ask(store(tmp_path / "taken"), asked) == list(IDS)
    assert ask(store(tmp_path / "taken"), asked) == list(IDS)
    assert asked.times == 2


class Counting(StubEngine):
    """Counts the prompts that it was asked to tokenize."""

    tokenized = 0

    def tokenize(self, control: Control, messages: Sequence[Message]) -> TokenIds | None:
        self.tokenized += 1
        return super().tokenize(control, messages)


def test_prompts_go_out_as_if_they_were_tokenized_now(tmp_path: Path) -> None:
    def prepared(engine: StubEngine) -> Prepared:
        return prepare(engine, CONTROL, prompts(5), sampling(), store=store(tmp_path))

    now, kept = Counting(), Counting()
    assert prepared(now).openings == prepared(kept).openings
    assert (now.tokenized, kept.tokenized) == (5, 1)
    assert os.listdir(tmp_path)
