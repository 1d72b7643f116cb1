"""Where a split is looked for, in which forms it is read, and how a file that cannot be read is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_speedbench.data import load
from pytest_speedbench.errors import DataError
from tests.data.prepared import in_order, row, split_rows, write_jsonl, write_messages, write_parquet

PREPARE = "run Model-Optimizer's prepare_data.py or NeMo-Skills' prepare.py with access to all sources"
FORMS = (
    "qualitative/test.parquet",
    "qualitative.parquet",
    "qualitative/test-00000-of-00001.parquet",
    "qualitative.jsonl",
    "qualitative/test.jsonl",
)


def refusal(folder: Path, split: str = "qualitative") -> str:
    """The line a user reads, with the folder shortened to DIR."""
    with pytest.raises(DataError) as caught:
        load(split, folder)
    line = str(caught.value).replace(str(folder), "DIR")
    assert "\n" not in line
    return line


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_same_prompts(tmp_path: Path, form: str) -> None:
    rows = split_rows("qualitative", per_category=3)
    write = write_parquet if form.endswith("parquet") else write_jsonl
    write(tmp_path / form, rows)

    dataset = load("qualitative", tmp_path)

    assert [(prompt.question_id, prompt.category, list(prompt.turns)) for prompt in dataset.prompts] == [
        (fields["question_id"], fields["category"], fields["turns"])
        for fields in in_order("qualitative", rows)
    ]
    assert dataset.split == "qualitative"
    assert dataset.source == str(tmp_path / form)


def test_parquet_jsonl_and_messages_give_equal_digests(tmp_path: Path) -> None:
    rows = split_rows("throughput_1k", per_category=4)
    write_parquet(tmp_path / "a" / "throughput_1k.parquet", rows)
    write_jsonl(tmp_path / "b" / "throughput_1k.jsonl", rows)
    write_messages(tmp_path / "c" / "throughput_1k.jsonl", rows)

    first, second, third = (load("throughput_1k", tmp_path / name) for name in "abc")

    assert first.prompts == second.prompts == third.prompts
    assert [prompt.digest for prompt in first.prompts] == [prompt.digest for prompt in third.prompts]


def test_every_shard_is_read(tmp_path: Path) -> None:
    rows = split_rows("throughput_2k", per_category=4)
    for number in range(3):
        shard = rows[number * 4 : number * 4 + 4]
        write_parquet(tmp_path / "throughput_2k" / f"test-{number:05}-of-00003.parquet", shard)

    dataset = load("throughput_2k", tmp_path)

    assert [prompt.question_id for prompt in dataset.prompts] == [
        fields["question_id"] for fields in in_order("throughput_2k", rows)
    ]
    assert dataset.source == str(tmp_path / "throughput_2k" / "test-*.parquet")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    for number in (0, 2):
        write_parquet(tmp_path / "qualitative" / f"test-{number:05}-of-00003.parquet", [row()])

    assert refusal(tmp_path) == (
        "DIR/qualitative/test-*.parquet lacks test-00001-of-00003.parquet; copy the split again"
    )


def test_shards_of_two_files_are_refused(tmp_path: Path) -> None:
    for name in ("test-00000-of-00001.parquet", "test-00000-of-00002.parquet"):
        write_parquet(tmp_path / "qualitative" / name, [row()])

    assert refusal(tmp_path) == (
        "DIR/qualitative/test-*.parquet matches shards of several files: "
        "test-00000-of-00001.parquet, test-00000-of-00002.parquet; keep one set"
    )


def test_several_forms_of_a_split_are_refused_and_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "qualitative" / "test.parquet", [row()])
    write_jsonl(tmp_path / "qualitative.jsonl", [row()])

    assert refusal(tmp_path) == (
        "data folder DIR has split qualitative in several forms: "
        "qualitative/test.parquet, qualitative.jsonl; keep one"
    )


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    line = refusal(tmp_path / "nothing")

    assert line.startswith(
        "data folder DIR does not exist; name the folder that holds qualitative/test.parquet, "
    )


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "qualitative.jsonl", [row()])

    assert refusal(path).startswith("data folder DIR is a file, not a folder; name the folder that holds ")


def test_an_empty_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"data folder DIR is empty; {PREPARE}, and name the folder it wrote"


def test_a_folder_without_the_split_tells_what_was_looked_for(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "throughput_1k.jsonl", [row(category="mixed")])

    assert refusal(tmp_path) == (
        "data folder DIR has no split qualitative: looked for qualitative/test.parquet, qualitative.parquet, "
        "qualitative/test-*.parquet, qualitative.jsonl, qualitative/test.jsonl, found throughput_1k.jsonl; "
        f"{PREPARE} for this split"
    )


@pytest.mark.parametrize("name", ["qualitative.jsonl", "qualitative.parquet"])
def test_a_folder_in_place_of_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()

    line = refusal(tmp_path)
    assert line.startswith(f"DIR/{name} ")
    assert "is a directory" in line.lower() or "regular file" in line


@pytest.mark.parametrize("name", ["qualitative.jsonl", "qualitative.parquet"])
def test_a_file_without_rows(tmp_path: Path, name: str) -> None:
    if name.endswith("jsonl"):
        write_jsonl(tmp_path / name, [])
    else:
        import pyarrow
        import pyarrow.parquet

        columns = [("question_id", pyarrow.string()), ("category", pyarrow.string())]
        schema = pyarrow.schema([*columns, ("turns", pyarrow.list_(pyarrow.string()))])
        pyarrow.parquet.write_table(schema.empty_table(), tmp_path / name)

    assert refusal(tmp_path) == f"DIR/{name} has no rows; {PREPARE}"


def test_blank_lines_count_but_are_no_rows(tmp_path: Path) -> None:
    lines = [json.dumps(row()), "", "  ", json.dumps(row("q2", "codng")), ""]
    (tmp_path / "qualitative.jsonl").write_text("\n".join(lines), encoding="utf-8")

    assert refusal(tmp_path).startswith("DIR/qualitative.jsonl, line 4: ")


def test_a_line_that_is_no_json(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "qualitative.jsonl", [row()])
    path.write_bytes(path.read_bytes() + b'{"question_id": "q2",\n')

    line = refusal(tmp_path)
    assert line.startswith("DIR/qualitative.jsonl, line 2: not JSON (")
    assert line.endswith(f"); each line must be one JSON object, {PREPARE}")


def test_a_line_of_endless_nesting_is_no_json_either(tmp_path: Path) -> None:
    (tmp_path / "qualitative.jsonl").write_text("[" * 200_000, encoding="utf-8")

    assert refusal(tmp_path).startswith("DIR/qualitative.jsonl, line 1: not JSON (")


@pytest.mark.parametrize(
    ("text", "kind"),
    [('["a"]', "an array"), ('"a"', "a string"), ("7", "a number"), ("true", "a boolean"), ("null", "null")],
)
def test_a_line_that_is_no_object(tmp_path: Path, text: str, kind: str) -> None:
    (tmp_path / "qualitative.jsonl").write_text(text, encoding="utf-8")

    assert refusal(tmp_path) == (
        f"DIR/qualitative.jsonl, line 1: {kind}, not a JSON object; each line must be one, {PREPARE}"
    )


def test_a_line_that_is_not_utf8(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "qualitative.jsonl", [row()])
    path.write_bytes(path.read_bytes() + '{"question_id": "ü"}'.encode("latin-1"))

    assert refusal(tmp_path) == "DIR/qualitative.jsonl, line 2: byte 18 is not UTF-8; write the file as UTF-8"


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "qualitative.jsonl", [row()])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    assert len(load("qualitative", tmp_path).prompts) == 1


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    fields = row(turns=("one\u2028two\x85three",))
    (tmp_path / "qualitative.jsonl").write_text(json.dumps(fields, ensure_ascii=False), encoding="utf-8")

    assert load("qualitative", tmp_path).prompts[0].turns == ("one\u2028two\x85three",)


def test_a_truncated_parquet_file(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "qualitative.parquet", split_rows("qualitative", 5))
    path.write_bytes(path.read_bytes()[:-200])

    line = refusal(tmp_path)
    assert line.startswith("DIR/qualitative.parquet is no readable Parquet file (")
    assert line.endswith(f"); copy it again, or {PREPARE}")


def test_a_parquet_file_damaged_within(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "qualitative.parquet", split_rows("qualitative", 40), row_group_size=1000)
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 200 + content[204:])

    assert refusal(tmp_path).startswith("DIR/qualitative.parquet is no readable Parquet file (")


def test_a_parquet_file_without_a_needed_column(tmp_path: Path) -> None:
    write_parquet(tmp_path / "qualitative.parquet", [{"question_id": "q1", "turns": ["Hello."]}])

    assert refusal(tmp_path) == (
        f"DIR/qualitative.parquet: no column `category` (has question_id, turns); {PREPARE}"
    )


def test_rows_of_parquet_are_counted_across_row_groups(tmp_path: Path) -> None:
    rows = [row(f"q{number}") for number in range(100)]
    rows[76] = row("q76", "codng")
    write_parquet(tmp_path / "qualitative.parquet", rows)

    assert refusal(tmp_path).startswith("DIR/qualitative.parquet, row 77: category `codng` ")


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "qualitative.parquet", [row()])
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    assert refusal(tmp_path) == (
        "DIR/qualitative.parquet: reading Parquet needs pyarrow; pip install 'pytest-speedbench[parquet]'"
    )


def test_jsonl_and_sample_need_neither_pyarrow_nor_numpy(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "qualitative.jsonl", [row()])
    program = (
        "import sys, pathlib; from pytest_speedbench.data import load;"
        "load('qualitative', None); load('throughput_1k', None); load('qualitative', pathlib.Path(sys.argv[1]));"
        "print(sorted({'pyarrow', 'numpy', 'scipy', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"
