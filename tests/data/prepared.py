"""Rows as SPEED-Bench has them, and the files in which they are prepared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_speedbench.speed_bench import categories_of

Row = Mapping[str, Any]


def row(
    question_id: str = "q1", category: str = "coding", turns: Any = ("Sort a list.",), **other: Any
) -> Row:
    """A row in the schema of SPEED-Bench; a field given as None is left out."""
    fields = {
        "question_id": question_id,
        "category": category,
        "sub_category": "",
        "turns": list(turns) if isinstance(turns, tuple) else turns,
        "source": "somewhere",
        "src_id": "7",
        "difficulty": "easy",
        "multiturn": False,
        **other,
    }
    return {name: value for name, value in fields.items() if value is not None}


def split_rows(split: str, per_category: int) -> list[Row]:
    """A whole split, sorted by category as the published files are."""
    return [
        row(f"{category}-{number}", category, (f"{category} prompt {number}", "And then?")[: 1 + number % 2])
        for category in categories_of(split)
        for number in range(per_category)
    ]


def write_jsonl(path: Path, rows: Iterable[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(fields) + "\n" for fields in rows), encoding="utf-8")
    return path


def write_messages(path: Path, rows: Iterable[Row]) -> Path:
    """As NeMo-Skills writes them: `messages` instead of `turns`."""
    converted = [
        {
            **{name: value for name, value in fields.items() if name != "turns"},
            "messages": [{"role": "user", "content": turn} for turn in fields["turns"]],
        }
        for fields in rows
    ]
    return write_jsonl(path, converted)


def write_parquet(path: Path, rows: Sequence[Row], row_group_size: int = 5) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist([dict(fields) for fields in rows])
    pyarrow.parquet.write_table(table, path, row_group_size=row_group_size)
    return path


def in_order(split: str, rows: Sequence[Row]) -> list[Row]:
    """Rows as their prompts are taken: by category, and by the SHA-256 of their ids."""
    categories = categories_of(split)

    def key(fields: Row) -> tuple[int, str]:
        digest = hashlib.sha256(fields["question_id"].encode()).hexdigest()
        return categories.index(fields["category"]), digest

    return sorted(rows, key=key)
