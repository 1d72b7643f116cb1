"""Examples do what a reader who copies them expects."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_speedbench import engines
from pytest_speedbench.engines import names
from pytest_speedbench.settings.options import OPTIONS, Option
from pytest_speedbench.settings.read import read
from tests.readme import EXAMPLES, copy_of, run_readme

ENGINE_REPOSITORY = EXAMPLES / "engine_repository"
WORKFLOW = ENGINE_REPOSITORY / ".github" / "workflows" / "speedbench.yml"
TARGETS = tuple(yaml.safe_load((ENGINE_REPOSITORY / "speedbench.yaml").read_text("utf-8"))["targets"])


@pytest.fixture
def engine_repository(pytester: pytest.Pytester) -> Path:
    """A copy on its own, as in a repository that knows nothing of this one."""
    shutil.copytree(
        ENGINE_REPOSITORY,
        pytester.path,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns(".speedbench", "__pycache__", "baselines"),
    )
    return pytester.path


def test_the_engine_repository_collects_every_cell_without_an_engine(
    pytester: pytest.Pytester, engine_repository: Path
) -> None:
    result = pytester.runpytest("--collect-only", "-q")
    assert result.ret == 0
    cells = [line.partition("::")[2] for line in result.outlines if "[" in line]
    assert len(cells) == (11 + 1) * 2 + (3 + 1) * 3 + (3 + 1)
    assert "test_acceptance_length[qualitative-multilingual-bs32]" in cells
    assert "test_throughput[throughput_1k-low_entropy-bs128]" in cells


def test_the_engine_repository_skips_without_an_engine(
    pytester: pytest.Pytester, engine_repository: Path
) -> None:
    result = pytester.runpytest("-k", "coding-bs1]")
    result.assert_outcomes(skipped=1)


def test_the_engine_repository_s_tests_gate_an_engine(
    pytester: pytest.Pytester, engine_repository: Path
) -> None:
    arguments = (
        "-p",
        "no:cacheprovider",
        "--speedbench-engine=reference",
        "--speedbench-output-length=16",
        "--speedbench-ignore-eos",
        "--speedbench-rounds=2",
        "--speedbench-max-rounds=2",
        "-k",
        "coding-bs1] or mixed-bs32] or one_request",
    )
    pytester.runpytest_subprocess(*arguments).assert_outcomes(failed=2, passed=2)
    pytester.runpytest_subprocess(*arguments, "--speedbench-save").assert_outcomes(passed=4)


def test_the_engine_repository_s_readme_is_true(tmp_path: Path) -> None:
    collected, saved, on_a_gpu = run_readme(copy_of("engine_repository", tmp_path))
    assert collected.status == 0, collected.output
    assert saved.status == 0, saved.output
    assert "saved 2 cells to baselines/reference-draft_model-k3.yaml" in saved.output
    # neither vLLM nor prepared data is on this machine: refused in one line, before anything is launched
    assert on_a_gpu.status == pytest.ExitCode.USAGE_ERROR, on_a_gpu.output
    assert "ERROR: " in on_a_gpu.output


@pytest.mark.parametrize("name", TARGETS)
def test_targets_of_the_engine_repository_can_be_read(name: str) -> None:
    def command_line(option: Option) -> tuple[Any, str, Path] | None:
        return (name, option.option, ENGINE_REPOSITORY) if option.name == "target" else None

    found = read(ENGINE_REPOSITORY, command_line, lambda option: None, engines.offer)
    assert found is not None
    assert found.target.name == name
    assert found.target.engine in names()
    assert found.target.method != "none"
    assert found.ignore_eos
    assert found.baseline_path == ENGINE_REPOSITORY / "baselines" / f"{name}.yaml"


def test_the_workflow_gates_every_target_and_saves_none() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text("utf-8"))
    job = workflow["jobs"]["gate"]
    assert tuple(job["strategy"]["matrix"]["target"]) == TARGETS
    [command] = [step["run"] for step in job["steps"] if "pytest tests" in step.get("run", "")]
    options = set(re.findall(r"--speedbench-[a-z-]*[a-z]", command))
    assert options <= {option.option for option in OPTIONS}
    assert {"--speedbench-target", "--speedbench-data", "--speedbench-report"} <= options
    assert "--speedbench-save" not in command


def test_the_workflow_pins_its_actions_and_keeps_what_a_failure_needs() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text("utf-8"))
    steps = workflow["jobs"]["gate"]["steps"]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    assert all(re.search(r"@v\d+\.\d+\.\d+$", action) for action in used)
    [upload] = [step for step in steps if "upload-artifact" in step.get("uses", "")]
    assert upload["if"] == "always()"
    assert ".speedbench/logs" in upload["with"]["path"].split()
    assert upload["with"]["include-hidden-files"] is True
    [summary] = [step for step in steps if "GITHUB_STEP_SUMMARY" in step.get("run", "")]
    assert summary["if"] == "always()"
