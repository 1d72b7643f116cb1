"""The plugin on a real SGLang with real speculative decoding, run on a CPU as a user would run it.

    tox -e sglang-cpu

The first run installs SGLang (minutes), see `install.py`. It is the wheel from PyPI as it is; `sglang_cpu/` stands in
for its CUDA kernels. Acceptance is real, if of tiny models with random weights; throughput is that of slow kernels
on a busy CPU, and gated nowhere here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pytest_speedbench.cells import Cell
from pytest_speedbench.data import load
from pytest_speedbench.engines.control import Control
from pytest_speedbench.engines.launch.process import start
from pytest_speedbench.engines.sglang import SglangEngine
from pytest_speedbench.load.conversation import prepare
from pytest_speedbench.load.plan import RoundPlan
from pytest_speedbench.load.rounds import record_round
from pytest_speedbench.settings.target import Sampling, Target
from pytest_speedbench.speed_bench import QUALITATIVE
from tests.metrics.records import build
from tests.real.scenario import (
    FOR_DRAFT_MODELS,
    OUTPUT_LENGTH,
    Gate,
    gates_the_drafter,
    refuses_a_dead_drafter,
    repeats_its_target,
)
from tests.real.targets import BATCH_SIZE, target, variables

Serve = Callable[[Target], str]


def test_gates_the_ngram_drafter_of_a_server_that_already_runs(gate: Gate, serve: Serve) -> None:
    """One request at a time: what the drafter remembers of requests beside it depends on who is faster."""
    ngram = target("sglang", "ngram")
    runs_already = replace(ngram, url=serve(ngram))
    # matches no more than the last token, and so drafts what followed it anywhere
    worse = target("sglang", "ngram", "--speculative-ngram-max-trie-depth=2")
    gates_the_drafter(gate, runs_already, runs_already, worse, batch_size=1)


def test_gates_a_draft_model(gate: Gate, serve: Serve) -> None:
    drafting = target("sglang", "draft_model")
    worse = target("sglang", "draft_model", draft_model="draft_worse")
    gates_the_drafter(
        gate, drafting, replace(drafting, url=serve(drafting)), worse, BATCH_SIZE, FOR_DRAFT_MODELS
    )


def test_gates_an_eagle_head(gate: Gate, tmp_path: Path) -> None:
    eagle = target("sglang", "eagle", model="memoryless", draft_model="eagle_sglang")
    worse = target("sglang", "eagle", model="memoryless", draft_model="eagle_sglang_worse")
    with variables("sglang"), start(SglangEngine(eagle), eagle, tmp_path / "logs") as server:
        runs_already = replace(eagle, url=server.url)
        repeats_its_target(gates_the_drafter(gate, runs_already, runs_already, worse, BATCH_SIZE))


def test_refuses_to_save_a_dead_drafter(gate: Gate) -> None:
    dead = target("sglang", "eagle3", model="memoryless", draft_model="eagle3_sglang")
    refuses_a_dead_drafter(gate, dead, BATCH_SIZE)


class Rememberer(SglangEngine):
    """Never tells the server to forget."""

    def reset(self, control: Control) -> None:
        pass


def test_rounds_repeat_because_the_server_is_told_to_forget(serve: Serve) -> None:
    """SGLang's n-gram drafter drafts from the outputs of all requests before: a second round is another thing."""
    cell = Cell(QUALITATIVE, "coding", 1)
    prompts = load(cell.split, None, (cell.category,), 4).of_category(cell.category)
    ngram = target("sglang", "ngram")
    runs_already = replace(ngram, url=serve(ngram))

    def acceptance_lengths(engine: SglangEngine, control: Control) -> list[float]:
        prepared = prepare(engine, control, prompts, Sampling.exactly(OUTPUT_LENGTH), model=ngram.model)
        rounds = [record_round(engine, control, prepared, RoundPlan(cell.batch_size)) for _ in range(3)]
        measured = [build(cell, ngram.method, [each], prompts) for each in rounds]
        assert [measurement.problems for measurement in measured] == [()] * 3
        return [measurement.metrics["acceptance_length"] for measurement in measured]

    control = Control(str(runs_already.url))
    engine = SglangEngine(runs_already)
    engine.reset(control)
    remembered = acceptance_lengths(Rememberer(runs_already), control)
    forgotten = acceptance_lengths(engine, control)
    control.close()
    assert forgotten == [remembered[0]] * 3
    assert remembered[0] < remembered[1]
