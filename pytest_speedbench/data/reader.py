"""Where prepared SPEED-Bench data lies in a folder, and how its rows are read: one at a time, unchecked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_speedbench.errors import DataError

FORMS = (
    "{split}/test.parquet",
    "{split}.parquet",
    "{split}/test-*.parquet",
    "{split}.jsonl",
    "{split}/test.jsonl",
)
"""What a split is called: by Model-Optimizer's prepare_data.py, by hand, by the hub, by NeMo-Skills, by hand."""

PREPARE = "run Model-Optimizer's prepare_data.py or NeMo-Skills' prepare.py with access to all sources"

COLUMNS = ("question_id", "category", "turns", "messages")
"""What is read of a row; the other columns stay on the disk where the form allows it."""

ROWS_AT_ONCE = 32
"""Rows of a Parquet file that are in memory together: 4 MB of text in the largest split."""

BUFFER_BYTES = 1 << 16
"""Of a Parquet file at a time: pages are read one by one, where pyarrow would fetch a whole row group."""

_SHARD = re.compile(r"test-(\d+)-of-(\d+)\.parquet")


@dataclass(frozen=True)
class Source:
    """One split in one form: a file, or the shards of one."""

    label: str
    """For a person: the file's path, or the pattern that the shards share."""
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Row:
    """One row as it was found."""

    where: str
    """File and row, as an error line begins: `speed/qualitative.jsonl, line 7`."""
    fields: Mapping[str, Any]


def find(split: str, folder: Path) -> Source:
    """The one form in which a split lies in a folder.

    Raises:
        DataError: there is no such folder, it is empty or lacks the split, or it holds several forms of it.
    """
    patterns = [form.format(split=split) for form in FORMS]
    try:
        if not folder.is_dir():
            problem = "is a file, not a folder" if folder.exists() else "does not exist"
            raise DataError(
                f"data folder {folder} {problem}; name the folder that holds {', '.join(patterns)}"
            )
        content = sorted(entry.name for entry in folder.iterdir())
        found = {pattern: files for pattern in patterns if (files := tuple(sorted(folder.glob(pattern))))}
    except OSError as error:
        raise DataError(
            f"data folder {folder} cannot be read: {error.strerror or error}; check its permissions"
        ) from None
    if not content:
        raise DataError(f"data folder {folder} is empty; {PREPARE}, and name the folder it wrote")
    if not found:
        raise DataError(
            f"data folder {folder} has no split {split}: looked for {', '.join(patterns)}, "
            f"found {_shortened(content)}; {PREPARE} for this split"
        )
    if len(found) > 1:
        raise DataError(
            f"data folder {folder} has split {split} in several forms: {', '.join(found)}; keep one"
        )
    [(pattern, files)] = found.items()
    if "*" in pattern:
        _refuse_incomplete(folder / pattern, files)
    return Source(str(files[0] if len(files) == 1 else folder / pattern), files)


def rows(source: Source) -> Iterator[Row]:
    """Every row of a split, in file order, with nothing checked but that it can be read.

    Raises:
        DataError: a file cannot be read; names the file, the row where there is one, and the cure.
    """
    for file in source.files:
        yield from (_parquet_rows if file.suffix == ".parquet" else _jsonl_rows)(file)


def _jsonl_rows(file: Path) -> Iterator[Row]:
    try:
        with file.open(
            "rb"
        ) as lines:  # as bytes: only a newline ends a line, and a bad byte has a line number
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _jsonl_row(f"{file}, line {number}", line)
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror or error}; check the file and its permissions"
        ) from None


def _jsonl_row(where: str, line: bytes) -> Row:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start + 1} is not UTF-8; write the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: not JSON ({error}); each line must be one JSON object, {PREPARE}"
        ) from None
    if not isinstance(fields, dict):
        raise DataError(f"{where}: {_kind(fields)}, not a JSON object; each line must be one, {PREPARE}")
    return Row(where, fields)


def _parquet_rows(file: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"{file}: reading Parquet needs pyarrow; pip install 'pytest-speedbench[parquet]'"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER_BYTES) as table:
            names = table.schema_arrow.names
            columns = [name for name in COLUMNS if name in names]
            for needed in ("question_id", "category"):
                if needed not in columns:
                    raise DataError(f"{file}: no column `{needed}` (has {', '.join(names)}); {PREPARE}")
            number = 0
            for batch in table.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(f"{file}, row {number}", fields)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{file} is no readable Parquet file ({reason}); copy it again, or {PREPARE}"
        ) from None


def _refuse_incomplete(pattern: Path, files: tuple[Path, ...]) -> None:
    numbers = [(int(match[1]), int(match[2])) for file in files if (match := _SHARD.fullmatch(file.name))]
    totals = {total for _, total in numbers}
    if len(totals) > 1:
        names = ", ".join(file.name for file in files)
        raise DataError(f"{pattern} matches shards of several files: {names}; keep one set")
    missing = sorted(
        {number for total in totals for number in range(total)} - {number for number, _ in numbers}
    )
    if missing:
        names = ", ".join(f"test-{number:05}-of-{max(totals):05}.parquet" for number in missing)
        raise DataError(f"{pattern} lacks {_shortened(names.split(', '))}; copy the split again")


def _kind(value: object) -> str:
    names = {str: "a string", list: "an array", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
