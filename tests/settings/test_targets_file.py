"""`speedbench.yaml`, as options read it. Its errors as a person meets them: tests/integration/test_option_target.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_speedbench.errors import SettingsError
from pytest_speedbench.settings.targets_file import load_target

TARGETS = """\
targets:
  big:
    engine: vllm
    draft_length: 5
    engine_args: [--tensor-parallel-size=8]
    env: {VLLM_X: 1}
    tolerance: {output_tps: 0.1, mean_output_tps: 0.05}
  small: {engine: reference}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "speedbench.yaml"
    path.write_text(TARGETS)
    return path


def test_mappings_are_given_as_on_the_command_line(file: Path) -> None:
    assert load_target(file, "big") == {
        "engine": "vllm",
        "draft_length": 5,
        "engine_args": ["--tensor-parallel-size=8"],
        "env": ["VLLM_X=1"],
        "tolerance": ["output_tps=0.1", "mean_output_tps=0.05"],
    }
    assert load_target(file, "small") == {"engine": "reference"}


def test_a_target_that_is_not_there_is_answered_with_those_that_are(file: Path) -> None:
    words = r"^--speedbench-against=bigger: speedbench\.yaml has no such target; it has big, small$"
    with pytest.raises(SettingsError, match=words):
        load_target(file, "bigger", "--speedbench-against")


def test_without_a_file_it_is_said_where_it_was_looked_for(tmp_path: Path) -> None:
    words = f"^--speedbench-target=big: there is no speedbench.yaml in {tmp_path}; "
    with pytest.raises(SettingsError, match=words):
        load_target(tmp_path / "speedbench.yaml", "big")


def test_what_does_not_fit_is_refused_by_its_place(file: Path) -> None:
    file.write_text(TARGETS.replace("draft_length: 5", "draft_length: five"))
    with pytest.raises(SettingsError, match=r"targets\.big\.draft_length"):
        load_target(file, "small")
