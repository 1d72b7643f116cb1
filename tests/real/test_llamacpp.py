"""The plugin on a real llama.cpp with real speculative decoding, run on a CPU as a user would run it.

    tox -e llamacpp

The first run builds llama.cpp (10 CPU minutes), see `install.py`. Acceptance is real, if of tiny models with random
weights; throughput is that of a busy CPU, and gated nowhere here.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_speedbench.data import load
from pytest_speedbench.engines.base import Sampling
from pytest_speedbench.engines.control import Control
from pytest_speedbench.engines.llamacpp import LlamaCppEngine
from pytest_speedbench.engines.process import start
from pytest_speedbench.load.conversation import prepare
from pytest_speedbench.load.rounds import measure_rounds
from pytest_speedbench.settings import Target
from pytest_speedbench.vocabulary import DOMAINS, QUALITATIVE
from tests.real.install import Environment, environment
from tests.real.scenario import (
    DRAFT_LENGTH,
    OUTPUT_LENGTH,
    Gate,
    Run,
    gates_the_drafter,
    leaves_nothing_behind,
)

BATCH_SIZE = 8
ENGINE_ARGS = (
    "--threads=1",  # they wait for each other in loops, which takes for ever on a busy machine
    "--parallel=8",
    "--ctx-size=131072",
)
DRAFTS_ON_ONE_THREAD = "--speedbench-engine-arg=--spec-draft-threads=1"
ONE_BY_ONE = "--speedbench-batch-size=1"
"""llama.cpp's rounding depends on which requests share a batch, and so, now and then, does a token."""


@pytest.fixture(scope="session")
def llamacpp() -> Environment:
    return environment("llamacpp")


@pytest.fixture
def gate(pytester: pytest.Pytester, llamacpp: Environment) -> Gate:
    return Gate(pytester, "llamacpp", llamacpp, ENGINE_ARGS)


def test_gates_a_draft_model(gate: Gate) -> None:
    def with_drafter(name: str, *more: str) -> Run:
        return gate.launched(
            "target.gguf", "draft_model", ONE_BY_ONE, DRAFTS_ON_ONE_THREAD, gate.drafter(name), *more
        )

    saved = gates_the_drafter(
        lambda *more: with_drafter("draft.gguf", *more),
        lambda *more: with_drafter(
            "draft_worse.gguf", "--speedbench-category=coding,multilingual,summarization", *more
        ),
        len(DOMAINS),
    )
    for cell in saved.cells.values():
        assert cell["metrics"]["drafted_acceptance_length"] == pytest.approx(
            cell["metrics"]["acceptance_length"], rel=0.03
        ), "every step has a draft, but for one that has a single token left"


def test_gates_the_ngram_drafter(gate: Gate) -> None:
    def looking_up(tokens: int, *more: str) -> Run:
        size = f"--speedbench-engine-arg=--spec-ngram-simple-size-n={tokens}"
        return gate.launched("target.gguf", "ngram", ONE_BY_ONE, size, *more)

    saved = gates_the_drafter(
        lambda *more: looking_up(2, *more),
        lambda *more: looking_up(12, "--speedbench-category=coding,summarization", *more),
        len(DOMAINS),
    )
    for cell in saved.cells.values():
        assert cell["metrics"]["drafted_acceptance_length"] > 1.5 * cell["metrics"]["acceptance_length"]


def test_without_a_drafter_each_step_yields_a_token(gate: Gate) -> None:
    run = gate.launched(
        "target.gguf",
        "none",
        f"--speedbench-batch-size={BATCH_SIZE}",
        "--speedbench-category=qa,multilingual",
    )
    run.result.assert_outcomes(failed=2)
    assert run.verdicts() == ["no-baseline"] * 2
    assert set(run.metric("acceptance_length").values()) == {1.0}
    assert [cell["problems"] for cell in run.cells.values()] == [[], []]


def test_a_batch_larger_than_its_slots_is_not_measured(gate: Gate) -> None:
    run = gate.launched("target.gguf", "none", "--speedbench-batch-size=9", "--speedbench-category=qa")
    run.result.assert_outcomes(failed=1)
    run.result.stdout.fnmatch_lines(["*batch size 9: llamacpp computes 8 requests at once*"])


@pytest.mark.parametrize(
    ("method", "drafter", "argument"),
    [
        ("draft_model", "draft.gguf", "--spec-draft-threads=1"),
        ("ngram", None, "--spec-ngram-simple-size-n=2"),
    ],
)
def test_steps_told_by_responses_are_those_that_the_server_counted(
    llamacpp: Environment, tmp_path: Path, method: str, drafter: str | None, argument: str
) -> None:
    target = Target(
        name="by-hand",
        engine="llamacpp",
        method=method,
        draft_length=DRAFT_LENGTH,
        model=str(llamacpp.models / "target.gguf"),
        draft_model=str(llamacpp.models / drafter) if drafter else None,
        engine_args=(*ENGINE_ARGS, argument),
        engine_python=str(llamacpp.python),
    )
    engine = LlamaCppEngine(target)
    engine.check()
    with start(engine, target, tmp_path / "logs") as server:
        control = Control(server.url)
        prompts = load(QUALITATIVE, None, ("coding",), 4).of_category("coding")
        prepared = prepare(engine, control, prompts, Sampling(OUTPUT_LENGTH))
        rounds = measure_rounds(engine, control, prepared, batch_size=4, rounds=3)
        control.close()
    for round_ in rounds:
        assert round_.failed == 0 and round_.server_counters is not None
        told = [request.counters for request in round_.requests if request.counters is not None]
        assert len(told) == len(round_.requests)
        for request, counters in zip(round_.requests, told, strict=True):
            assert counters.decode_steps == request.output_tokens - 1 - counters.accepted_tokens
        steps = sum(counters.decode_steps or 0 for counters in told)
        drafted = round_.server_counters.drafted_steps
        assert drafted is not None
        assert sum(counters.accepted_tokens for counters in told) == round_.server_counters.accepted_tokens
        if method == "draft_model":
            assert steps - len(told) <= drafted <= steps
        else:
            assert 0 < drafted < steps
    assert len({round_.server_counters for round_ in rounds}) == 1, "rounds repeat each other"


def test_leaves_nothing_behind_when_pytest_is_killed(gate: Gate) -> None:
    run = gate.started(
        "target.gguf",
        "draft_model",
        f"--speedbench-batch-size={BATCH_SIZE}",
        DRAFTS_ON_ONE_THREAD,
        gate.drafter("draft.gguf"),
        "--speedbench-output-length=8000",
    )
    leaves_nothing_behind(run, BATCH_SIZE)
