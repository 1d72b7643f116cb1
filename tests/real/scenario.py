"""What is asked of every real engine, as its user asks: save, pass again, fail with a worse drafter, refuse a dead one.

That nothing outlives a pytest that is killed is asked of every engine in `tests/engines/conformance.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from pytest_speedbench.settings.target import Target
from tests.engines.command_line import options_of
from tests.real.targets import DRAFT_LENGTH, variables

OUTPUT_LENGTH = 64
CATEGORIES = ("coding", "multilingual", "summarization")
FOR_DRAFT_MODELS = ("coding", "math", "roleplay")
"""The worse of the two loses in each of their prompts. In many languages some lose much more than others, and 8 prompts
make nobody sure of a loss."""


@dataclass(frozen=True)
class Run:
    """What a pytest run left behind."""

    result: pytest.RunResult
    cells: dict[str, dict[str, Any]]
    """Of the results, by id."""

    def metric(self, name: str) -> dict[str, float]:
        return {cell_id: cell["metrics"][name] for cell_id, cell in self.cells.items()}

    def verdicts(self) -> list[str]:
        return [cell["verdicts"]["acceptance_length"]["verdict"] for cell in self.cells.values()]


@dataclass(frozen=True)
class Gate:
    """Runs the suite's acceptance tests on the bundled prompts, from an empty folder."""

    pytester: pytest.Pytester

    def run(
        self, target: Target, batch_size: int, *arguments: str, categories: tuple[str, ...] = CATEGORIES
    ) -> Run:
        """Measure a target; a server that the plugin launches, unless the target has a URL.

        Args:
            target: what is measured.
            batch_size: of every cell.
            arguments: further ones of the command line.
            categories: one cell each.
        """
        results = self.pytester.path / "results.json"
        results.unlink(missing_ok=True)
        with variables(target.engine):
            result = self.pytester.runpytest_subprocess(
                *("-p", "no:cacheprovider", "--pyargs", "pytest_speedbench.suite", "-k", "acceptance"),
                *options_of(target),
                f"--speedbench-batch-size={batch_size}",
                f"--speedbench-category={','.join(categories)}",
                f"--speedbench-output-length={OUTPUT_LENGTH}",
                "--speedbench-ignore-eos",
                "--speedbench-rounds=1",
                "--speedbench-max-rounds=1",
                "--speedbench-degenerate=1",  # models of random weights repeat themselves
                f"--speedbench-json={results}",
                *arguments,
            )
        document = json.loads(results.read_text()) if results.exists() else {"cells": []}
        return Run(result, {cell["id"]: cell for cell in document["cells"]})


def gates_the_drafter(
    gate: Gate,
    saved_on: Target,
    passed_on: Target,
    worse: Target,
    batch_size: int,
    categories: tuple[str, ...] = CATEGORIES,
) -> Run:
    """Saves a baseline, passes against it, and fails when the drafter is worse; returns the run that saved.

    Args:
        gate: that runs it.
        saved_on: the target.
        passed_on: the same; one of the two may name a server of it that runs already.
        worse: the same with a worse drafter.
        batch_size: of all cells.
        categories: one cell each; the drafter must be worse in all of them.
    """
    cells = len(categories) + 1  # and their mean
    saved = gate.run(saved_on, batch_size, "--speedbench-save", categories=categories)
    saved.result.assert_outcomes(passed=cells)
    saved.result.stdout.fnmatch_lines([f"saved {len(categories)} cells to baselines/*"])
    assert len(saved.cells) == cells
    for cell in saved.cells.values():
        assert cell["problems"] == []
        assert (cell["counter_source"], cell["tokenization"]) == ("response", "engine")
        assert 1.02 < cell["metrics"]["acceptance_length"] <= 1 + DRAFT_LENGTH

    again = gate.run(passed_on, batch_size, categories=categories)
    again.result.assert_outcomes(passed=cells)
    assert again.verdicts() == ["pass"] * cells
    for metric in ("acceptance_length", "drafted_acceptance_length"):
        assert again.metric(metric) == pytest.approx(saved.metric(metric), abs=0.5e-4)

    failed = gate.run(worse, batch_size, categories=categories)
    failed.result.assert_outcomes(failed=cells)
    assert failed.verdicts() == ["regression"] * cells
    failed.result.stdout.fnmatch_lines(["*acceptance_length * -> *", "*REGRESSION*", "*cause: drafter*"])
    return saved


def compares_with_no_speculation(gate: Gate, drafting: Target, plain: Target) -> None:
    """Measures both in one run, A B B A, with no file: speedup and break-even point come with it.

    Args:
        gate: that runs it.
        drafting: a target with a URL.
        plain: the same without speculation, with a URL.
    """
    targets = {
        each.name: {
            "engine": each.engine,
            "url": each.url,
            "model": each.model,
            "method": each.method,
            "draft_length": DRAFT_LENGTH,
        }
        for each in (drafting, plain)
    }
    folder = gate.pytester.path
    (folder / "speedbench.yaml").write_text(json.dumps({"targets": targets}))
    result = gate.pytester.runpytest_subprocess(
        *("-p", "no:cacheprovider", "--pyargs", "pytest_speedbench.suite", "-k", "acceptance"),
        *(f"--speedbench-target={drafting.name}", f"--speedbench-against={plain.name}"),
        "--speedbench-concurrent-targets",
        *("--speedbench-batch-size=1,4", "--speedbench-category=coding,qa", "--speedbench-limit=4"),
        *(f"--speedbench-output-length={OUTPUT_LENGTH}", "--speedbench-ignore-eos"),
        *("--speedbench-rounds=2", "--speedbench-max-rounds=2", "--speedbench-degenerate=1"),
        "--speedbench-json=results.json",
    )
    result.assert_outcomes(passed=6)
    document = json.loads((folder / "results.json").read_text())
    for cell in document["cells"]:
        check = cell["verdicts"]["acceptance_length"]
        assert check["verdict"] in ("improvement", "inconclusive"), "drafts can only add tokens to a step"
        assert check["baseline"] == 1
        assert check["value"] > 1
        # throughput is that of a busy CPU: the client may have had no core to time it on, and says so then
        assert "speedup" in cell["metrics"] or "overloaded" in cell["missing"]["speedup"]
    assert not (folder / "baselines").exists()


def repeats_its_target(run: Run) -> None:
    """Every draft was accepted, and so each step but the last yielded k + 1 tokens."""
    decode_tokens = OUTPUT_LENGTH - 1
    steps = -(-decode_tokens // (1 + DRAFT_LENGTH))
    assert set(run.metric("acceptance_length").values()) == {decode_tokens / steps}
    assert set(run.metric("drafted_acceptance_length").values()) == {1 + DRAFT_LENGTH}


def refuses_a_dead_drafter(gate: Gate, dead: Target, batch_size: int) -> None:
    """Fails and writes nothing, though everything else about the run is in order.

    Args:
        gate: that runs it.
        dead: a target whose drafter never guesses right.
        batch_size: of the cell.
    """
    saving = gate.run(dead, batch_size, "--speedbench-save", categories=("qa",))
    saving.result.assert_outcomes(failed=1)  # one category has no mean
    saving.result.stdout.fnmatch_lines(["*dead drafter*", "*nothing was saved*"])
    assert list(saving.metric("acceptance_length").values()) == [pytest.approx(1, abs=0.02)]
    assert [cell["problems"] for cell in saving.cells.values()] == [[]]
    assert not (gate.pytester.path / "baselines").exists()
