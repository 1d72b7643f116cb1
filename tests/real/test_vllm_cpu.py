"""The plugin on a real vLLM with real speculative decoding, run on a CPU as a user would run it.

    tox -e vllm-cpu

The first run installs vLLM (minutes), see `install.py`. Acceptance is real, if of tiny models with random weights;
throughput is that of a busy CPU, and gated nowhere here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench.engines.control import Control
from pytest_speedbench.engines.process import start
from pytest_speedbench.engines.vllm import VllmEngine
from pytest_speedbench.settings import Target
from pytest_speedbench.vocabulary import DOMAINS
from tests.real.install import Environment, environment

OUTPUT_LENGTH = 64
DRAFT_LENGTH = 3
SERVER_ARGS = ("--enforce-eager", "--max-model-len=16384")
"""Compilation would take longer than these runs do."""


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


RunSuite = Callable[..., Run]


@pytest.fixture(scope="session")
def vllm() -> Environment:
    return environment("vllm-cpu")


@pytest.fixture
def run_suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, vllm: Environment) -> RunSuite:
    """Runs the suite's acceptance tests on the bundled prompts, from an empty folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    # On a busy machine, threads bound to all cores wait for one another ten times as long as one thread works.
    # numba, which looks n-grams up, would set the number for all of OpenMP anew.
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")

    def run(model: str, method: str, *arguments: str) -> Run:
        results = pytester.path / "results.json"
        results.unlink(missing_ok=True)
        result = pytester.runpytest_subprocess(
            *("-p", "no:cacheprovider", "--pyargs", "pytest_speedbench.suite", "-k", "acceptance"),
            "--speedbench-engine=vllm",
            f"--speedbench-model={vllm.models / model}",
            f"--speedbench-method={method}",
            f"--speedbench-draft-length={DRAFT_LENGTH}",
            f"--speedbench-output-length={OUTPUT_LENGTH}",
            "--speedbench-ignore-eos",
            "--speedbench-batch-size=8",
            f"--speedbench-json={results}",
            *arguments,
        )
        document = json.loads(results.read_text()) if results.exists() else {"cells": []}
        return Run(result, {cell["id"]: cell for cell in document["cells"]})

    return run


@pytest.fixture
def gate(run_suite: RunSuite, vllm: Environment) -> RunSuite:
    """Runs the suite on a vLLM that the plugin launches."""

    def run(model: str, method: str, *arguments: str) -> Run:
        server_args = (f"--speedbench-engine-arg={arg}" for arg in SERVER_ARGS)
        return run_suite(model, method, f"--speedbench-engine-python={vllm.python}", *server_args, *arguments)

    return run


@pytest.mark.parametrize(
    ("method", "as_it_is", "made_worse"),
    [
        pytest.param(
            "ngram",
            (),
            # drafts only where 12 tokens in a row occurred before
            (
                "--speedbench-engine-arg=--speculative-config.prompt_lookup_min=12",
                "--speedbench-engine-arg=--speculative-config.prompt_lookup_max=12",
            ),
            id="ngram",
        ),
        pytest.param("draft_model", ("draft",), ("draft_worse",), id="draft_model"),
    ],
)
def test_gates_the_drafter(
    gate: RunSuite, vllm: Environment, method: str, as_it_is: tuple[str, ...], made_worse: tuple[str, ...]
) -> None:
    if method == "draft_model":
        as_it_is, made_worse = (
            tuple(f"--speedbench-draft-model={vllm.models / name}" for name in names)
            for names in (as_it_is, made_worse)
        )

    saved = gate("target", method, *as_it_is, "--speedbench-save")
    saved.result.assert_outcomes(passed=len(DOMAINS))
    saved.result.stdout.fnmatch_lines(
        [f"saved {len(DOMAINS)} cells to baselines/vllm-target-{method}-k3.yaml*"]
    )
    assert len(saved.cells) == len(DOMAINS)
    for cell in saved.cells.values():
        assert cell["problems"] == []
        assert (cell["counter_source"], cell["tokenization"]) == ("response", "engine")
        assert 1.02 < cell["metrics"]["acceptance_length"] < 1 + DRAFT_LENGTH

    again = gate("target", method, *as_it_is)
    again.result.assert_outcomes(passed=len(DOMAINS))
    assert set(again.verdicts()) == {"pass"}
    for metric in ("acceptance_length", "drafted_acceptance_length"):
        assert again.metric(metric) == pytest.approx(saved.metric(metric), abs=0.5e-4)

    worse = gate("target", method, *made_worse, "--speedbench-category=coding,multilingual,summarization")
    worse.result.assert_outcomes(failed=3)
    assert worse.verdicts() == ["regression"] * 3
    worse.result.stdout.fnmatch_lines(
        ["  acceptance_length * -> *", "*REGRESSION (tolerance -3 %)", "  cause: drafter.*"]
    )


def test_measures_the_known_truth_on_a_server_that_already_runs(
    run_suite: RunSuite, vllm: Environment, tmp_path: Path
) -> None:
    """An EAGLE head that repeats its target has every draft accepted, and so each step but the last yields k + 1."""
    target = Target(
        name="known-truth",
        engine="vllm",
        method="eagle",
        draft_length=DRAFT_LENGTH,
        model=str(vllm.models / "memoryless"),
        draft_model=str(vllm.models / "eagle"),
        engine_args=SERVER_ARGS,
        engine_python=str(vllm.python),
    )
    engine = VllmEngine(target)
    engine.check()
    with start(engine, target, tmp_path / "logs") as server:
        run = run_suite(
            "memoryless",
            "eagle",
            f"--speedbench-url={server.url}",
            "--speedbench-category=qa,coding",
            "--speedbench-save",
        )
        control = Control(server.url)
        assert control.answers(engine.ready_path), "the server was to be left running"
        control.close()
    run.result.assert_outcomes(passed=2)
    decode_tokens = OUTPUT_LENGTH - 1
    steps = -(-decode_tokens // (1 + DRAFT_LENGTH))
    assert set(run.metric("acceptance_length").values()) == {decode_tokens / steps}
    assert set(run.metric("drafted_acceptance_length").values()) == {1 + DRAFT_LENGTH}
    assert {cell["counter_source"] for cell in run.cells.values()} == {"response"}


def test_refuses_to_save_a_dead_drafter(gate: RunSuite, vllm: Environment, pytester: pytest.Pytester) -> None:
    run = gate(
        "memoryless",
        "eagle3",
        f"--speedbench-draft-model={vllm.models / 'eagle3'}",
        "--speedbench-category=qa",
        "--speedbench-save",
    )
    run.result.assert_outcomes(failed=1)
    run.result.stdout.fnmatch_lines(["*dead drafter*", "*nothing was saved*"])
    assert run.metric("acceptance_length") == {"qualitative-qa-bs8": pytest.approx(1, abs=0.02)}
    assert not (pytester.path / "baselines").exists()
