"""The bundled sample: prompts written for this project, in SPEED-Bench's schema but none of its text.

`sample/qualitative.jsonl` holds 8 prompts for each of the 11 categories, as they are. A throughput split
would be megabytes, so `sample/passages.jsonl` holds passages of each entropy tier, and the prompts are composed
of them on loading: a reference, one passage, others behind it until the nominal length is reached, and a task
about the first. A tier has 7,000 to 14,000 tokens of passages; longer prompts hold them again in another order,
so that n-gram drafting finds more to copy in them than in SPEED-Bench.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_speedbench.data import reader, rows
from pytest_speedbench.data.prompts import Prompt
from pytest_speedbench.speed_bench import ENTROPY_TIERS, INPUT_LENGTHS, QUALITATIVE

SOURCE = "sample"
PROMPTS_PER_CATEGORY = 8

FOLDER = Path(__file__).with_name("sample")

_TOKEN = re.compile(r"[^\W\d_]{1,10}|\d{1,3}| (?=\d)|[^\w\s]{1,3}\n*|\n+| {2,}")


@dataclass(frozen=True)
class Passage:
    """A text of one entropy tier, and what a prompt that begins with it asks for."""

    tier: str
    title: str
    task: str
    text: str

    @property
    def section(self) -> str:
        """The passage as it stands in a prompt."""
        return f"{self.title}\n\n{self.text}\n\n"


def prompts(split: str) -> Iterator[Prompt]:
    """The sample of a split, 8 prompts per category, the same on every machine and Python."""
    if split == QUALITATIVE:
        yield from rows.prompts(reader.Source(SOURCE, (FOLDER / "qualitative.jsonl",)), split)
        return
    everything = passages()
    for tier in ENTROPY_TIERS:
        tier_passages = tuple(passage for passage in everything if passage.tier == tier)
        lengths = {passage: estimated_tokens(passage.section) for passage in tier_passages}
        for index in range(PROMPTS_PER_CATEGORY):
            question_id = f"sample-{split}-{tier}-{index + 1:02}"
            first = (index + PROMPTS_PER_CATEGORY * list(INPUT_LENGTHS).index(split)) % len(tier_passages)
            yield Prompt(question_id, tier, (_compose(question_id, split, tier_passages[first], lengths),))


def passages() -> tuple[Passage, ...]:
    """Everything throughput prompts are composed of."""
    lines = (FOLDER / "passages.jsonl").read_text(encoding="utf-8").split("\n")
    return tuple(Passage(**json.loads(line)) for line in lines if line)


def estimated_tokens(text: str) -> int:
    """About as many tokens as o200k_base, the tokenizer of SPEED-Bench's nominal lengths, makes of a text.

    Counts what such a tokenizer keeps together: up to ten letters, three digits or three marks, line ends, indents.
    Fitted to the bundled passages, of whose tiers it counts 0.98 to 1.01 of o200k_base's tokens; four characters
    per token would make low-entropy prompts half as long again. Of use for Latin script only. The real count, by
    the model's own tokenizer, is in each measurement.

    Args:
        text: any text; tokens do not depend on what stands before or after it, so that sections add up.
    """
    return sum(1 for _ in _TOKEN.finditer(text))


def _compose(question_id: str, split: str, lead: Passage, lengths: dict[Passage, int]) -> str:
    """One prompt, which differs from every other one of the sample from its first characters on."""
    # A reference comes first of all, so that no prefix cache serves one prompt with the blocks of another.
    reference = _digest(question_id)[:8]
    start = f"{reference} is the number of this bundle; the task stands at its end.\n\n"
    end = f"\n\nTask. {lead.task}\n"
    left = INPUT_LENGTHS[split] - estimated_tokens(start) - estimated_tokens(end)
    sections = [start]
    for passage in _endless(question_id, lead, tuple(lengths)):
        if lengths[passage] > left:
            sections.append(_cut(passage.section, left))
            break
        sections.append(passage.section)
        left -= lengths[passage]
    return "".join(sections).rstrip() + end


def _endless(question_id: str, lead: Passage, tier_passages: tuple[Passage, ...]) -> Iterator[Passage]:
    """All passages, the leading one first, over and over in an order of this prompt's and this round's own."""
    yield lead
    for turn in itertools.count():
        order = sorted(tier_passages, key=lambda passage: _digest(f"{question_id}/{turn}/{passage.title}"))
        yield from (passage for passage in order if turn > 0 or passage is not lead)


def _cut(text: str, tokens: int) -> str:
    """The longest beginning of a text that ends with a whole word and has at most so many tokens."""
    for number, match in enumerate(_TOKEN.finditer(text)):
        if number == tokens:
            return text[: max(text.rfind(" ", 0, match.start()), text.rfind("\n", 0, match.start()), 0)]
    return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
