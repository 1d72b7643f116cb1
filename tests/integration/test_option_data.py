"""`--speedbench-data`: prompts of one's own folder, and their token ids, which are made once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.conftest import Run


@pytest.fixture
def data(pytester: pytest.Pytester) -> Path:
    """Prepared data of two categories, as NeMo-Skills lays it out."""
    rows = [
        {
            "question_id": f"{category}-{number}",
            "category": category,
            "turns": [f"Write down the number {number} in words, and say what it is good for in {category}."],
        }
        for category in ("coding", "qa")
        for number in range(4)
    ]
    folder = pytester.mkdir("data")
    (folder / "qualitative.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def token_files(data: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (data / "tokens").iterdir()}


def test_is_measured_and_its_token_ids_are_made_once(data: Path, run: Run) -> None:
    saved = run(f"--speedbench-data={data}", "--speedbench-save")
    saved.assert_outcomes(passed=3)
    saved.stdout.fnmatch_lines(["speedbench: data: data*"])
    made = token_files(data)
    assert len(made) == 2

    again = run(f"--speedbench-data={data}")
    again.assert_outcomes(passed=3)
    assert token_files(data) == made


def test_of_a_folder_that_cannot_be_written_is_measured_all_the_same(data: Path, run: Run) -> None:
    (data / "tokens").write_text("not a folder")
    run(f"--speedbench-data={data}", "--speedbench-save").assert_outcomes(passed=3)


def test_the_sample_leaves_nothing_behind(pytester: pytest.Pytester, run: Run) -> None:
    run("--speedbench-save").assert_outcomes(passed=3)
    assert not list(pytester.path.rglob("*.npz"))
