"""What a row must hold, which rows are kept, and what is said of a split that is short."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_speedbench.data import Dataset, Prompt, load
from pytest_speedbench.data.rows import PLACEHOLDER
from pytest_speedbench.engines.reference.vocabulary import FIRST_PIECE, built_in
from pytest_speedbench.errors import DataError
from pytest_speedbench.speed_bench import DOMAINS, SPLITS, categories_of
from tests.data.prepared import Row, in_order, row, split_rows, write_jsonl, write_messages, write_parquet

PREPARE = "run Model-Optimizer's prepare_data.py or NeMo-Skills' prepare.py with access to all sources"
ALL = ", ".join(DOMAINS)


def refusal(folder: Path, split: str = "qualitative", **selection: Any) -> str:
    """The line a user reads, with the folder shortened to DIR."""
    with pytest.raises(DataError) as caught:
        load(split, folder, **selection)
    line = str(caught.value).replace(str(folder), "DIR")
    assert "\n" not in line
    return line


@pytest.fixture(params=["jsonl", "parquet"])
def refused(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., str]:
    """Writes rows in either form and gives the line that refuses them, with file and row shortened to `N:`."""

    def line(*rows: Row) -> str:
        (write_jsonl if request.param == "jsonl" else write_parquet)(
            tmp_path / f"qualitative.{request.param}", rows
        )
        text = refusal(tmp_path)
        counted = "line" if request.param == "jsonl" else "row"
        return text.replace(f"DIR/qualitative.{request.param}, {counted} ", "")

    return line


@pytest.mark.parametrize("template", ["", "\n\nYou are {role_name}. {role_description}", "\n"])
@pytest.mark.parametrize("turn", [1, 2])
def test_a_placeholder_is_refused_also_before_a_template(
    refused: Callable[..., str], template: str, turn: int
) -> None:
    turns = ("Hello.",) * (turn - 1) + (PLACEHOLDER + template,)

    assert refused(row(), row("q2", turns=turns)) == (
        f"2: turn {turn} is still the placeholder of the published dataset, not a prompt; {PREPARE}"
    )


def test_a_prompt_that_merely_mentions_the_placeholder_is_fine(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", [row(turns=(f"What does '{PLACEHOLDER}' mean?",))])

    assert len(load("qualitative", tmp_path).prompts) == 1


def test_a_misspelt_category_names_the_nearest(refused: Callable[..., str]) -> None:
    assert refused(row(), row("q2"), row("q3", "summarisation")) == (
        "3: category `summarisation` is none of qualitative (did you mean `summarization`?); "
        f"its categories are {ALL}"
    )


def test_a_category_of_another_split_names_those_of_this(refused: Callable[..., str]) -> None:
    assert refused(row(category="low_entropy")) == (
        f"1: category `low_entropy` is none of qualitative; its categories are {ALL}"
    )


def test_a_missing_category(refused: Callable[..., str]) -> None:
    assert refused(row(), row("q2", None)) == f"2: no `category`; qualitative has {ALL}"  # type: ignore[arg-type]


def test_a_duplicate_question_id_names_both_rows(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", [row("a"), row("b"), row("c"), row("b")])

    assert refusal(tmp_path) == (
        "DIR/qualitative.jsonl, line 4: question_id `b` is that of DIR/qualitative.jsonl, line 2 too; "
        f"each row needs its own, remove one or {PREPARE}"
    )


def test_a_duplicate_question_id_is_found_across_shards(tmp_path: Path) -> None:
    for number in (0, 1):
        write_parquet(tmp_path / "qualitative" / f"test-0000{number}-of-00002.parquet", [row("same")])

    assert refusal(tmp_path).startswith(
        "DIR/qualitative/test-00001-of-00002.parquet, row 1: question_id `same` is that of "
        "DIR/qualitative/test-00000-of-00002.parquet, row 1 too; "
    )


def test_a_missing_question_id(refused: Callable[..., str]) -> None:
    rows = (row(), row(None))  # type: ignore[arg-type]

    assert refused(*rows) == f"2: no `question_id`; prompts are paired by it, {PREPARE}"


@pytest.mark.parametrize("question_id", ["", "  ", 7, ["a"], "a\ud800"])
def test_a_question_id_that_is_no_text(tmp_path: Path, question_id: Any) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", [row(question_id)])

    assert refusal(tmp_path) == (
        f"DIR/qualitative.jsonl, line 1: `question_id` is no text; prompts are paired by it, {PREPARE}"
    )


@pytest.mark.parametrize("turn", ["", " \n\t"])
def test_an_empty_turn(refused: Callable[..., str], turn: str) -> None:
    assert refused(row(turns=("Hello.", turn))) == f"1: turn 2 is empty; {PREPARE}"


@pytest.mark.parametrize("turns", [None, ()])
def test_no_turns(refused: Callable[..., str], turns: Any) -> None:
    assert refused(row(), row("q2", turns=turns)) == (
        f"2: no turns; each row needs `turns` or `messages`, {PREPARE}"
    )


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ("Hello.", "`turns` is no list of texts"),
        ({"a": 1}, "`turns` is no list of texts"),
        (["Hello.", 7], "turn 2 is no text"),
        ([None], "turn 1 is no text"),
        (["\ud800"], "turn 1 holds half a surrogate pair, which is no character"),
    ],
)
def test_turns_that_are_no_texts(tmp_path: Path, turns: Any, problem: str) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", [row(turns=turns)])

    assert refusal(tmp_path) == f"DIR/qualitative.jsonl, line 1: {problem}; {PREPARE}"


@pytest.mark.parametrize("role", ["system", "assistant", None])
def test_messages_of_others_than_the_user(tmp_path: Path, role: str | None) -> None:
    messages = [{"role": "user", "content": "Hello."}, {"role": role, "content": "Good day."}]
    write_jsonl(tmp_path / "qualitative.jsonl", [row(turns=None, messages=messages)])

    assert refusal(tmp_path) == (
        f"DIR/qualitative.jsonl, line 1: message 2 has role `{role}`; keep user messages only, "
        "the engine's own replies come between them"
    )


@pytest.mark.parametrize("messages", ["Hello.", ["Hello."], {"role": "user"}])
def test_messages_that_are_none(tmp_path: Path, messages: Any) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", [row(turns=None, messages=messages)])

    assert refusal(tmp_path) == (
        "DIR/qualitative.jsonl, line 1: `messages` is no list of objects with `role` and `content`; "
        + PREPARE
    )


def test_messages_without_content(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", [row(turns=None, messages=[{"role": "user"}])])

    assert refusal(tmp_path) == f"DIR/qualitative.jsonl, line 1: turn 1 is no text; {PREPARE}"


def test_a_row_whose_turns_and_messages_differ(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Something else."}]
    write_jsonl(tmp_path / "qualitative.jsonl", [row(messages=messages)])

    assert refusal(tmp_path) == (
        "DIR/qualitative.jsonl, line 1: `turns` and `messages` differ; keep one of them"
    )


def test_rows_that_are_not_kept_are_checked_too(tmp_path: Path) -> None:
    rows = [row("a"), row("b"), row("c", "math", (PLACEHOLDER,))]
    write_jsonl(tmp_path / "qualitative.jsonl", rows)

    line = refusal(tmp_path, categories=("coding",), limit=1)
    assert line.startswith("DIR/qualitative.jsonl, line 3: turn 1 is still the placeholder ")


def test_a_limit_is_per_category(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", split_rows("qualitative", per_category=5))

    dataset = load("qualitative", tmp_path, limit=2)

    assert [prompt.category for prompt in dataset.prompts] == [
        category for category in DOMAINS for _ in range(2)
    ]


def test_a_limit_keeps_the_first_by_digest_and_not_the_first_of_the_file(tmp_path: Path) -> None:
    rows = split_rows("qualitative", per_category=5)
    write_jsonl(tmp_path / "a" / "qualitative.jsonl", rows)
    write_jsonl(tmp_path / "b" / "qualitative.jsonl", rows[::-1])

    whole = load("qualitative", tmp_path / "a")
    limited = load("qualitative", tmp_path / "a", limit=2)

    assert limited.prompts == load("qualitative", tmp_path / "b", limit=2).prompts
    for category in DOMAINS:
        assert limited.of_category(category) == whole.of_category(category)[:2]
    # their digests begin with 44 and 84, the others' with 8e, b9 and d8
    assert [prompt.question_id for prompt in limited.of_category("coding")] == ["coding-1", "coding-4"]


def test_a_limit_above_what_there_is_keeps_everything(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", split_rows("qualitative", per_category=5))

    assert len(load("qualitative", tmp_path, limit=6).prompts) == 55


@pytest.mark.parametrize("folder", ["sample", "prepared"])
def test_only_the_categories_asked_for_are_kept(tmp_path: Path, folder: str) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", split_rows("qualitative", per_category=5))

    dataset = load("qualitative", tmp_path if folder == "prepared" else None, ("rag", "math"), limit=3)

    assert [prompt.category for prompt in dataset.prompts] == ["math"] * 3 + ["rag"] * 3
    assert len(dataset.of_category("rag")) == 3


def test_categories_short_of_rows_are_listed_in_one_warning(tmp_path: Path) -> None:
    rows = split_rows("qualitative", per_category=80)
    short = [fields for fields in rows if fields["question_id"] != "math-79" and fields["category"] != "qa"]
    write_jsonl(tmp_path / "qualitative.jsonl", short)

    source = tmp_path / "qualitative.jsonl"
    assert load("qualitative", tmp_path).warnings == (
        f"{source} has fewer than SPEED-Bench's 80 prompts in math: 79, qa: 0",
    )


def test_a_whole_split_gives_no_warning_whatever_is_kept_of_it(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "throughput_1k.jsonl", split_rows("throughput_1k", per_category=512))

    assert load("throughput_1k", tmp_path, limit=1).warnings == ()


def test_a_category_that_is_short_but_not_asked_for_gives_no_warning(tmp_path: Path) -> None:
    rows = [fields for fields in split_rows("qualitative", 80) if fields["question_id"] != "math-0"]
    write_jsonl(tmp_path / "qualitative.jsonl", rows)

    assert load("qualitative", tmp_path, ("coding",)).warnings == ()


def test_a_category_without_rows_is_refused_when_asked_for(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", [row("a"), row("b", "math")])

    assert refusal(tmp_path, categories=("math", "qa")) == (
        "DIR/qualitative.jsonl has no rows of category `qa`, only of `coding`, `math`; "
        f"ask for those, or {PREPARE}"
    )


def test_an_unknown_split() -> None:
    with pytest.raises(DataError) as caught:
        load("througput_1k", None)
    assert str(caught.value) == (
        "split `througput_1k` is unknown (did you mean `throughput_1k`?); the splits are " + ", ".join(SPLITS)
    )


def test_an_unknown_category_in_the_selection() -> None:
    with pytest.raises(DataError) as caught:
        load("throughput_1k", None, ("mixd",))
    assert str(caught.value) == (
        "category `mixd` is none of throughput_1k (did you mean `mixed`?); "
        "its categories are low_entropy, mixed, high_entropy"
    )


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one(limit: int) -> None:
    with pytest.raises(
        DataError, match=f"^limit {limit} keeps no prompts; give at least 1 prompt per category$"
    ):
        load("qualitative", None, limit=limit)


def test_what_cannot_be_printed_is_escaped(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", [row(category="\ud800")])

    assert refusal(tmp_path).startswith(
        "DIR/qualitative.jsonl, line 1: category `\\ud800` is none of qualitative;"
    )


def test_a_long_value_of_several_lines_stays_one_short_line(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", [row(category="no\ncategory" * 50)])

    assert len(refusal(tmp_path)) < 300


def random_tokens(seed: int) -> str:
    chance = random.Random(seed)
    vocabulary = built_in()
    return vocabulary.decode([chance.randrange(FIRST_PIECE, len(vocabulary)) for _ in range(1000)])


def throughput_rows(turn: Callable[[int], str]) -> list[Row]:
    """The sample's prompts as a split of one's own, `mixed` replaced by what `turn` gives."""
    prompts = load("throughput_1k", None).prompts
    return [
        row(
            prompt.question_id,
            prompt.category,
            (turn(at) if prompt.category == "mixed" else prompt.turns[0],),
        )
        for at, prompt in enumerate(prompts)
    ]


def test_a_category_of_random_tokens_is_refused_in_a_throughput_split(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "throughput_1k.jsonl", throughput_rows(random_tokens))

    assert refusal(tmp_path, "throughput_1k") == (
        "DIR/throughput_1k.jsonl: the prompts of category `mixed` are random tokens, not text; they overstate the "
        "speed of speculative decoding, since acceptance and expert routing differ from those of text; "
        + PREPARE
    )


def test_random_tokens_in_a_category_that_is_not_asked_for_are_not_in_the_way(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "throughput_1k.jsonl", throughput_rows(random_tokens))

    assert len(load("throughput_1k", tmp_path, ("low_entropy", "high_entropy")).prompts) == 16


def test_a_throughput_split_of_text_is_fine(tmp_path: Path) -> None:
    text = load("throughput_1k", None, ("mixed",)).prompts[0].turns[0]
    write_jsonl(tmp_path / "throughput_1k.jsonl", throughput_rows(lambda at: f"{at} {text}"))

    assert len(load("throughput_1k", tmp_path).prompts) == 24


def test_a_qualitative_split_may_ask_about_noise(tmp_path: Path) -> None:
    rows = [row(f"q{seed}", turns=(random_tokens(seed),)) for seed in range(8)]
    write_jsonl(tmp_path / "qualitative.jsonl", rows)

    assert len(load("qualitative", tmp_path).prompts) == 8


TURN = st.text(min_size=1, max_size=40).filter(lambda turn: turn.strip() and PLACEHOLDER not in turn)
ROWS = st.sampled_from(SPLITS).flatmap(
    lambda split: st.tuples(
        st.just(split),
        st.lists(
            st.builds(
                row,
                question_id=st.text(min_size=1, max_size=12).filter(str.strip),
                category=st.sampled_from(categories_of(split)),
                turns=st.lists(TURN, min_size=1, max_size=5).map(tuple),
            ),
            min_size=1,
            max_size=12,
            unique_by=lambda fields: fields["question_id"],
        ),
    )
)


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_any_valid_rows_come_back_from_every_form_as_they_were(generated: tuple[str, list[Row]]) -> None:
    split, rows = generated
    expected = tuple(
        Prompt(fields["question_id"], fields["category"], tuple(fields["turns"]))
        for fields in in_order(split, rows)
    )
    read: list[Dataset] = []
    with TemporaryDirectory() as folder:
        for name, write in (("a", write_jsonl), ("b", write_messages), ("c", write_parquet)):
            ending = "parquet" if write is write_parquet else "jsonl"
            write(Path(folder, name, f"{split}.{ending}"), rows)
            read.append(load(split, Path(folder, name)))

    for dataset in read:
        assert dataset.prompts == expected
        assert [prompt.digest for prompt in dataset.prompts] == [prompt.digest for prompt in expected]
