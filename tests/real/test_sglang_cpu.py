"""The plugin on a real SGLang with real speculative decoding, run on a CPU as a user would run it.

    tox -e sglang-cpu

The first run installs SGLang (minutes), see `install.py`. It is the wheel from PyPI as it is; `sglang_cpu/` stands in
for its CUDA kernels. Acceptance is real, if of tiny models with random weights; throughput is that of slow kernels
on a busy CPU, and gated nowhere here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_speedbench.cells import Cell
from pytest_speedbench.data import load
from pytest_speedbench.engines.base import Sampling
from pytest_speedbench.engines.control import Control
from pytest_speedbench.engines.process import start
from pytest_speedbench.engines.sglang import SglangEngine
from pytest_speedbench.load.conversation import prepare
from pytest_speedbench.load.rounds import measure_rounds
from pytest_speedbench.metrics.measure import build
from pytest_speedbench.settings import Target
from pytest_speedbench.vocabulary import QUALITATIVE
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
from tests.real.targets import ARGUMENTS

ENGINE_ARGS = ARGUMENTS["sglang"]
CATEGORIES = ("coding", "multilingual", "summarization")
NARROWED = (f"--speedbench-category={','.join(CATEGORIES)}",)


@pytest.fixture(scope="session")
def sglang() -> Environment:
    return environment("sglang-cpu")


def hand_made(sglang: Environment, model: str, method: str, draft_model: str | None = None) -> Target:
    """For a server that a test launches by itself."""
    return Target(
        name="hand-made",
        engine="sglang",
        method=method,
        draft_length=DRAFT_LENGTH,
        model=str(sglang.models / model),
        draft_model=str(sglang.models / draft_model) if draft_model else None,
        engine_args=ENGINE_ARGS,
        engine_python=str(sglang.python),
    )


@pytest.fixture
def gate(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, sglang: Environment) -> Gate:
    set_variables(monkeypatch, sglang)
    return Gate(pytester, "sglang", sglang, ENGINE_ARGS)


@pytest.fixture(scope="module")
def ngram_server(sglang: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server that was launched once for all tests that only send to it."""
    target = hand_made(sglang, "target", "ngram")
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_variables(monkeypatch, sglang)
        engine = SglangEngine(target)
        engine.check()
        with start(engine, target, tmp_path_factory.mktemp("ngram") / "logs") as server:
            yield server.url


def test_gates_the_ngram_drafter(gate: Gate, ngram_server: str) -> None:
    """One request at a time: what the drafter remembers of requests beside it depends on who is faster."""
    one_by_one = (*NARROWED, "--speedbench-batch-size=1")

    def as_it_is(*more: str) -> Run:
        return gate.attached(ngram_server, "target", "ngram", *one_by_one, *more)

    def made_worse(*more: str) -> Run:
        # matches no more than the last token, and so drafts what followed it anywhere
        weaker = "--speedbench-engine-arg=--speculative-ngram-max-trie-depth=2"
        return gate.launched("target", "ngram", *one_by_one, weaker, *more)

    gates_the_drafter(as_it_is, made_worse, len(CATEGORIES))


def test_gates_a_draft_model(gate: Gate) -> None:
    batched = (*NARROWED, "--speedbench-batch-size=8")

    def as_it_is(*more: str) -> Run:
        return gate.launched("target", "draft_model", gate.drafter("draft"), *batched, *more)

    def made_worse(*more: str) -> Run:
        return gate.launched("target", "draft_model", gate.drafter("draft_worse"), *batched, *more)

    gates_the_drafter(as_it_is, made_worse, len(CATEGORIES))


def test_gates_an_eagle_head_on_a_server_that_already_runs(
    gate: Gate, sglang: Environment, tmp_path: Path
) -> None:
    """A head that repeats its target has every draft accepted, and so each step but the last yields k + 1."""
    batched = (*NARROWED, "--speedbench-batch-size=8")
    engine = SglangEngine(target := hand_made(sglang, "memoryless", "eagle", "eagle_sglang"))
    engine.check()
    with start(engine, target, tmp_path / "logs") as server:

        def as_it_is(*more: str) -> Run:
            return gate.attached(server.url, "memoryless", "eagle", *batched, *more)

        def made_worse(*more: str) -> Run:
            server.stop()
            return gate.launched("memoryless", "eagle", gate.drafter("eagle_sglang_worse"), *batched, *more)

        saved = gates_the_drafter(as_it_is, made_worse, len(CATEGORIES))
    decode_tokens = OUTPUT_LENGTH - 1
    steps = -(-decode_tokens // (1 + DRAFT_LENGTH))
    assert set(saved.metric("acceptance_length").values()) == {decode_tokens / steps}
    assert set(saved.metric("drafted_acceptance_length").values()) == {1 + DRAFT_LENGTH}


def test_refuses_to_save_a_dead_drafter(gate: Gate) -> None:
    run = gate.launched(
        "memoryless",
        "eagle3",
        gate.drafter("eagle3_sglang"),
        "--speedbench-batch-size=8",
        "--speedbench-category=qa",
        "--speedbench-save",
    )
    refuses_a_dead_drafter(gate, run)


class Rememberer(SglangEngine):
    """Never tells the server to forget."""

    def reset(self, control: Control) -> None:
        pass


def test_rounds_repeat_because_the_server_is_told_to_forget(sglang: Environment, ngram_server: str) -> None:
    """SGLang's n-gram drafter drafts from the outputs of all requests before: a second round is another thing."""
    cell = Cell(QUALITATIVE, "coding", 1)
    prompts = load(cell.split, None, (cell.category,), 4).of_category(cell.category)
    target = replace(hand_made(sglang, "target", "ngram"), url=ngram_server)

    def acceptance_lengths(engine: SglangEngine, control: Control) -> list[float]:
        prepared = prepare(engine, control, prompts, Sampling(OUTPUT_LENGTH), model=target.model)
        rounds = measure_rounds(engine, control, prepared, cell.batch_size, rounds=3)
        measured = [build(cell, target.method, [each], prompts) for each in rounds]
        assert [measurement.problems for measurement in measured] == [()] * 3
        return [measurement.metrics["acceptance_length"] for measurement in measured]

    control = Control(ngram_server)
    engine = SglangEngine(target)
    engine.reset(control)
    remembered = acceptance_lengths(Rememberer(target), control)
    forgotten = acceptance_lengths(engine, control)
    control.close()
    assert forgotten == [remembered[0]] * 3
    assert remembered[0] < remembered[1]


def test_leaves_no_process_behind_when_pytest_is_killed(gate: Gate) -> None:
    run = gate.started("target", "ngram", "--speedbench-batch-size=8", "--speedbench-output-length=3000")
    leaves_nothing_behind(run, batch_size=8)
