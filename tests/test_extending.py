"""What `docs/extending.md` shows: its metric is added to a copy of the package, and its hook is called."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text("utf-8")
GATE = """
import pytest

@pytest.mark.speedbench(split="qualitative", categories=["qa"], batch_sizes=[2])
def test_acceptance_length(speedbench):
    speedbench.measure().assert_no_regression("acceptance_length")
"""


def shown(language: str) -> str:
    [block] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert isinstance(block, str)
    return block


def apply(diff: str, root: Path) -> None:
    """Apply a diff whose hunks are found by their text, which must stand in the file once."""
    for change in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        name, *hunks = change.split("@@\n")
        path = root / name.strip()
        text = path.read_text("utf-8")
        for hunk in hunks:
            lines = hunk.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] in " -")
            assert text.count(before) == 1, f"{path.name} no longer has: {before}"
            text = text.replace(before, "".join(line[1:] for line in lines if line[0] in " +"))
        path.write_text(text, "utf-8")


@pytest.fixture
def extended(tmp_path: Path) -> Path:
    """A copy of the package with the page's metric, and a repository that it gates with the page's hook."""
    shutil.copytree(
        ROOT / "pytest_speedbench",
        tmp_path / "copy" / "pytest_speedbench",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    apply(shown("diff"), tmp_path / "copy")
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "pytest.ini").write_text("[pytest]\n")
    (repository / "test_gate.py").write_text(GATE)
    (repository / "conftest.py").write_text(shown("python"))
    return repository


def test_a_metric_is_one_entry_and_its_function(extended: Path) -> None:
    command = [sys.executable, "-m", "pytest", "--speedbench-engine=reference", "--speedbench-save"]
    lengths = ["--speedbench-output-length=16", "--speedbench-max-rounds=3", "--speedbench-json=results.json"]
    done = subprocess.run(
        [*command, *lengths],
        cwd=extended,
        env={**os.environ, "PYTHONPATH": str(extended.parent / "copy")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((extended / "results.json").read_text())
    [cell] = document["cells"]
    rate = cell["metrics"]["request_rate"]
    # every request of this engine has 16 tokens at most, and one of them may end earlier
    assert 0 < cell["metrics"]["output_tps"] / rate <= 16
    assert document["metrics"]["request_rate"]["unit"] == "requests/s"
    columns, values = re.findall(r"^(?:cell|qualitative-qa-bs2) +.*$", done.stdout, re.MULTILINE)[-2:]
    assert columns.split()[1:] == ["AL", "out", "TPS", "req/s", "verdict"]
    assert values.split()[3] == f"{rate:.2f}"
    [(cell_id, acceptance_length, measuring_s)] = csv.reader(
        (extended / "cells.csv").read_text().splitlines()
    )
    assert (cell_id, float(acceptance_length)) == (cell["id"], cell["metrics"]["acceptance_length"])
    assert float(measuring_s) > 0
