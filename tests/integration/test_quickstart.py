"""The README's first command, on the baselines that this repository ships."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(pytester: pytest.Pytester) -> Path:
    """The example and the baselines, laid out as in the checkout."""
    for folder in ("examples/quickstart", "baselines"):
        shutil.copytree(
            ROOT / folder, pytester.path / folder, ignore=shutil.ignore_patterns(".speedbench", "__pycache__")
        )
    return pytester.path


@pytest.mark.usefixtures("checkout")
def test_every_cell_has_a_baseline_to_the_last_digit(pytester: pytest.Pytester) -> None:
    """Acceptance is the same on every machine; speed is left to the example itself."""
    result = pytester.runpytest_subprocess(
        "examples/quickstart", "-k", "acceptance", "--speedbench-engine=reference"
    )
    result.assert_outcomes(passed=24, deselected=16)
    result.stdout.fnmatch_lines(
        [
            "speedbench: data: sample (bundled, not SPEED-Bench)",
            "qualitative-mean-bs1 * pass +0.0 %",
            "qualitative-mean-bs4 * pass +0.0 %",
        ]
    )
    table = [line for line in result.outlines if line.startswith("qualitative-") and "-mean-" not in line]
    assert len(table) == 22
    assert all(line.endswith(" pass +0.0 %") for line in table)


@pytest.mark.usefixtures("checkout")
def test_a_weaker_drafter_is_caught_in_every_category(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(
        "examples/quickstart",
        *("-k", "acceptance and bs4", "--speedbench-engine=reference"),
        "--speedbench-engine-arg=--draft-quality=0.9",
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    outcomes = result.parseoutcomes()
    assert outcomes["failed"] >= 8
    printed = result.stdout.str()
    assert printed.count("cause: drafter.") == 1, "explained once"
    assert printed.count("cause: drafter, as in qualitative-") == outcomes["failed"] - 1
    result.stdout.fnmatch_lines(["REGRESSION: acceptance_length fell in * of 11 categories at batch size 4*"])
    result.stdout.no_fnmatch_line("*cause: system*")
    assert len(result.outlines) < 140
    # pytest's own lines are as long as paths and names of tests, and a command is not broken
    ours = [line for line in result.outlines if not re.match(r"FAILED|rootdir:|plugins:|    pytest ", line)]
    assert max(map(len, ours)) <= 80


@pytest.mark.usefixtures("checkout")
def test_verbose_output_explains_every_failure(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(
        "examples/quickstart",
        *("-v", "-k", "acceptance and bs4 and (math or rag)", "--speedbench-engine=reference"),
        "--speedbench-engine-arg=--draft-quality=0.6",
    )
    result.assert_outcomes(failed=2, deselected=38)
    assert result.stdout.str().count("cause: drafter.") == 2
