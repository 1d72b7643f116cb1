"""What a row must hold to be a prompt, and which prompts a run keeps."""

from __future__ import annotations

import bisect
import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_speedbench.data.prompts import Prompt
from pytest_speedbench.data.random_text import looks_random
from pytest_speedbench.data.reader import PREPARE, Row, Source, rows
from pytest_speedbench.errors import DataError
from pytest_speedbench.speed_bench import INPUT_LENGTHS, SPLITS, categories_of, prompts_per_category

PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"
"""Stands in the published dataset for text that its owners do not let be copied; a template may follow it."""


@dataclass(frozen=True)
class Selection:
    """What was kept, and what there was."""

    prompts: tuple[Prompt, ...]
    available: Mapping[str, int]
    """Rows of each category in the data, kept or not."""


def wanted_categories(split: str, categories: tuple[str, ...] | None, limit: int | None) -> tuple[str, ...]:
    """The categories to keep, in the split's order.

    Raises:
        DataError: the split, a category or the limit is none that there can be.
    """
    if split not in SPLITS:
        raise DataError(
            f"split `{split}` is unknown{_nearest(split, SPLITS)}; the splits are {', '.join(SPLITS)}"
        )
    if limit is not None and limit < 1:
        raise DataError(f"limit {limit} keeps no prompts; give at least 1 prompt per category")
    known = categories_of(split)
    for category in categories or ():
        if category not in known:
            raise DataError(
                f"category `{category}` is none of {split}{_nearest(category, known)}; "
                f"its categories are {', '.join(known)}"
            )
    return known if categories is None else tuple(category for category in known if category in categories)


def prompts(source: Source, split: str) -> Iterator[Prompt]:
    """Every row of a split as a prompt, checked.

    Raises:
        DataError: a row is no prompt of the split, shares its `question_id` with another, or there are no rows.
    """
    seen: dict[str, str] = {}
    for row in rows(source):
        question_id = _question_id(row)
        if question_id in seen:
            raise DataError(
                f"{row.where}: question_id `{_shown(question_id)}` is that of {seen[question_id]} too; "
                f"each row needs its own, remove one or {PREPARE}"
            )
        seen[question_id] = row.where
        yield Prompt(question_id, _category(row, split), _turns(row))
    if not seen:
        raise DataError(f"{source.label} has no rows; {PREPARE}")


def select(found: Iterable[Prompt], wanted: tuple[str, ...], limit: int | None) -> Selection:
    """Keep the first `limit` prompts of each wanted category in `Prompt.order`; the rest is counted and let go.

    Files are sorted by source, so that their first rows are of one kind. The order by digest is as good as a random one,
    and the same for every file that holds these prompts.
    """
    available: Counter[str] = Counter()
    kept: dict[str, list[Prompt]] = {category: [] for category in wanted}
    for prompt in found:
        available[prompt.category] += 1
        if prompt.category in kept:
            of_category = kept[prompt.category]
            bisect.insort(of_category, prompt, key=_order)
            if limit is not None and len(of_category) > limit:
                of_category.pop()  # at once: all prompts of a long split would be hundreds of megabytes
    return Selection(tuple(prompt for category in wanted for prompt in kept[category]), dict(available))


def _order(prompt: Prompt) -> str:
    return prompt.order


def refuse_absent(selection: Selection, wanted: tuple[str, ...], label: str) -> None:
    """Refuse data that has nothing of a category that was asked for by name.

    Raises:
        DataError: names the categories, and those that there are.
    """
    absent = [category for category in wanted if not selection.available.get(category)]
    if absent:
        raise DataError(
            f"{label} has no rows of category {_quoted(absent)}, only of {_quoted(sorted(selection.available))}; "
            f"ask for those, or {PREPARE}"
        )


def refuse_random(selection: Selection, split: str, label: str) -> None:
    """Refuse a throughput split whose prompts are random tokens.

    They overstate what speculative decoding brings, by 23 % of the throughput on average in SPEED-Bench (arXiv
    2604.09557): models reply with a stock sentence or with whatever they make of the noise, and in a mixture of
    experts other experts are active than for text.

    Raises:
        DataError: names the category.
    """
    if split not in INPUT_LENGTHS:
        return
    for category in categories_of(split):
        if looks_random([prompt.turns[0] for prompt in selection.prompts if prompt.category == category]):
            raise DataError(
                f"{label}: the prompts of category `{category}` are random tokens, not text; they overstate the speed "
                f"of speculative decoding, since acceptance and expert routing differ from those of text; {PREPARE}"
            )


def shortages(selection: Selection, split: str, wanted: tuple[str, ...], label: str) -> tuple[str, ...]:
    """One line where wanted categories have fewer rows than SPEED-Bench gives them, else nothing."""
    whole = prompts_per_category(split)
    counts = {category: selection.available.get(category, 0) for category in wanted}
    short = [f"{category}: {count}" for category, count in counts.items() if count < whole]
    if not short:
        return ()
    return (f"{label} has fewer than SPEED-Bench's {whole} prompts in {', '.join(short)}",)


def _question_id(row: Row) -> str:
    question_id = row.fields.get("question_id")
    if not isinstance(question_id, str) or not question_id.strip() or not _is_unicode(question_id):
        problem = "no `question_id`" if question_id is None else "`question_id` is no text"
        raise DataError(f"{row.where}: {problem}; prompts are paired by it, {PREPARE}")
    return question_id


def _category(row: Row, split: str) -> str:
    known = categories_of(split)
    category = row.fields.get("category")
    if category in known:
        return str(category)
    if category is None:
        raise DataError(f"{row.where}: no `category`; {split} has {', '.join(known)}")
    raise DataError(
        f"{row.where}: category `{_shown(category)}` is none of {split}{_nearest(str(category), known)}; "
        f"its categories are {', '.join(known)}"
    )


def _turns(row: Row) -> tuple[str, ...]:
    turns = row.fields.get("turns")
    messages = row.fields.get("messages")
    if turns is None and messages is not None:
        turns = _user_turns(row.where, messages)
    elif messages is not None and turns != _user_turns(row.where, messages):
        raise DataError(f"{row.where}: `turns` and `messages` differ; keep one of them")
    if turns is None or turns == []:
        raise DataError(f"{row.where}: no turns; each row needs `turns` or `messages`, {PREPARE}")
    if not isinstance(turns, list):
        raise DataError(f"{row.where}: `turns` is no list of texts; {PREPARE}")
    for number, turn in enumerate(turns, start=1):
        _check_turn(f"{row.where}: turn {number}", turn)
    return tuple(turns)


def _user_turns(where: str, messages: Any) -> list[Any]:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise DataError(f"{where}: `messages` is no list of objects with `role` and `content`; {PREPARE}")
    for number, message in enumerate(messages, start=1):
        if message.get("role") != "user":
            raise DataError(
                f"{where}: message {number} has role `{_shown(message.get('role'))}`; keep user messages only, "
                f"the engine's own replies come between them"
            )
    return [message.get("content") for message in messages]


def _check_turn(where: str, turn: object) -> None:
    if not isinstance(turn, str):
        raise DataError(f"{where} is no text; {PREPARE}")
    if not turn.strip():
        raise DataError(f"{where} is empty; {PREPARE}")
    if turn.lstrip().startswith(PLACEHOLDER):
        raise DataError(f"{where} is still the placeholder of the published dataset, not a prompt; {PREPARE}")
    if not _is_unicode(turn):
        raise DataError(f"{where} holds half a surrogate pair, which is no character; {PREPARE}")


def _is_unicode(text: str) -> bool:
    """Whether a text can be sent and stored; JSON lets half a surrogate pair through."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _nearest(word: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean `{near[0]}`?)" if near else ""


def _shown(value: object) -> str:
    """A value of the data within one line."""
    text = " ".join(str(value).encode(errors="backslashreplace").decode().split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _quoted(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
