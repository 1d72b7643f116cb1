"""The plugin on a real llama.cpp with real speculative decoding, run on a CPU as a user would run it.

    tox -e llamacpp

The first run builds llama.cpp (10 CPU minutes), see `install.py`. Acceptance is real, if of tiny models with random
weights; throughput is that of a busy CPU, and gated nowhere here.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_speedbench.data import load
from pytest_speedbench.engines.control import Control
from pytest_speedbench.engines.launch.process import start
from pytest_speedbench.engines.llamacpp import LlamaCppEngine
from pytest_speedbench.load.conversation import prepare
from pytest_speedbench.load.plan import RoundPlan
from pytest_speedbench.load.rounds import record_round
from pytest_speedbench.settings.target import Sampling, Target
from pytest_speedbench.speed_bench import QUALITATIVE
from tests.real.scenario import FOR_DRAFT_MODELS, OUTPUT_LENGTH, Gate, gates_the_drafter
from tests.real.targets import BATCH_SIZE, target

ONE_BY_ONE = 1
"""Its batch size, for llama.cpp's rounding depends on which requests share a batch, and so, now and then, a token."""


def looking_up(tokens: int) -> Target:
    """Drafts what followed the last occurrence of so many tokens."""
    return target("llamacpp", "ngram", f"--spec-ngram-simple-size-n={tokens}")


def test_gates_a_draft_model(gate: Gate) -> None:
    drafting = target("llamacpp", "draft_model")
    worse = target("llamacpp", "draft_model", draft_model="draft_worse")
    saved = gates_the_drafter(gate, drafting, drafting, worse, ONE_BY_ONE, FOR_DRAFT_MODELS)
    for cell in saved.cells.values():
        assert cell["metrics"]["drafted_acceptance_length"] == pytest.approx(
            cell["metrics"]["acceptance_length"], rel=0.03
        ), "every step has a draft, but for one that has a single token left"


def test_gates_the_ngram_drafter(gate: Gate) -> None:
    # in text of many languages even 2 tokens seldom repeat
    repetitive = ("coding", "summarization")
    saved = gates_the_drafter(
        gate, looking_up(2), looking_up(2), looking_up(12), ONE_BY_ONE, categories=repetitive
    )
    for cell in saved.cells.values():
        assert cell["metrics"]["drafted_acceptance_length"] > 1.5 * cell["metrics"]["acceptance_length"]


def test_without_a_drafter_each_step_yields_a_token(gate: Gate) -> None:
    run = gate.run(target("llamacpp", "none"), BATCH_SIZE, categories=("qa", "multilingual"))
    run.result.assert_outcomes(failed=3)  # with their mean
    assert run.verdicts() == ["no-baseline"] * 3
    assert set(run.metric("acceptance_length").values()) == {1.0}
    assert [cell["problems"] for cell in run.cells.values()] == [[]] * 3


def test_a_batch_larger_than_its_slots_is_not_measured(gate: Gate) -> None:
    run = gate.run(target("llamacpp", "none"), BATCH_SIZE + 1, categories=("qa",))
    run.result.assert_outcomes(errors=1)
    run.result.stdout.fnmatch_lines(["*batch size 9: llamacpp computes 8 requests at once*"])


@pytest.mark.parametrize("method", ["draft_model", "ngram"])
def test_steps_told_by_responses_are_those_that_the_server_counted(method: str, tmp_path: Path) -> None:
    drafting = looking_up(2) if method == "ngram" else target("llamacpp", method)
    engine = LlamaCppEngine(drafting)
    engine.check()
    with start(engine, drafting, tmp_path / "logs") as server:
        control = Control(server.url)
        prompts = load(QUALITATIVE, None, ("coding",), 4).of_category("coding")
        prepared = prepare(engine, control, prompts, Sampling.exactly(OUTPUT_LENGTH))
        rounds = [record_round(engine, control, prepared, RoundPlan(4)) for _ in range(3)]
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
