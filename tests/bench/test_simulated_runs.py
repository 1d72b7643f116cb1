"""The simulation does to a run what its scenario says: its proofs are worth no more than that."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bench.simulated_runs import BASELINE_ROUNDS, HARDWARE, MAX_ROUNDS, Batch, Rounds, Scenario
from pytest_speedbench.gate.check import Verdict
from pytest_speedbench.gate.sequential import judge_group
from pytest_speedbench.speed_bench import DOMAINS

CODING = DOMAINS.index("coding")


def mean_of(scenario: Scenario, figure: Callable[[Batch], float], runs: int = 30) -> float:
    """Over simulated runs."""
    return float(
        np.mean([figure(Batch(scenario, 32, np.random.default_rng([7, run]))) for run in range(runs)])
    )


def spread_of_rounds(values: Callable[[Rounds], np.ndarray[tuple[int, ...], np.dtype[np.float64]]]) -> float:
    """Root of the mean variance of the logarithms of rounds."""
    variance = mean_of(Scenario(), lambda batch: float(np.log(values(batch.run)).var(axis=1, ddof=1).mean()))
    return float(np.sqrt(variance))


def test_noise_is_that_of_the_scenario() -> None:
    assert spread_of_rounds(lambda side: side.acceptance_length) == pytest.approx(0.01, rel=0.15)
    assert spread_of_rounds(lambda side: side.step_s) == pytest.approx(0.02, rel=0.05)
    assert spread_of_rounds(lambda side: side.user_tps) == pytest.approx(0.0224, rel=0.05)


def test_nothing_changes_unless_the_scenario_says_so() -> None:
    def change(batch: Batch) -> float:
        return float(np.log(batch.run.user_tps.mean() / batch.before.user_tps.mean()))

    assert mean_of(Scenario(), change) == pytest.approx(0, abs=0.002)


def test_losses_are_those_of_the_scenario_and_stay_in_their_category() -> None:
    def lost(category: int) -> Callable[[Batch], float]:
        return lambda batch: float(
            1 - batch.run.acceptance_length[category].mean() / batch.before.acceptance_length[category].mean()
        )

    scenario = Scenario(acceptance_loss={"coding": 0.05})
    assert mean_of(scenario, lost(CODING)) == pytest.approx(0.05, abs=0.003)
    assert mean_of(scenario, lost(CODING + 1)) == pytest.approx(0, abs=0.003)


def test_slower_steps_cost_throughput_and_no_acceptance() -> None:
    scenario = Scenario(slower=dict.fromkeys(DOMAINS, 1.1))

    def change(batch: Batch) -> float:
        return float(np.log(batch.output_tps(batch.run).mean() / batch.output_tps(batch.before).mean()))

    assert mean_of(scenario, change) == pytest.approx(-np.log(0.95 * 1.1 + 0.05), abs=0.004)
    assert mean_of(
        scenario,
        lambda batch: float(
            np.log(batch.run.acceptance_length.mean() / batch.before.acceptance_length.mean())
        ),
    ) == pytest.approx(0, abs=0.002)


def test_a_batch_gives_the_rounds_that_are_asked_for() -> None:
    batch = Batch(Scenario(), 32, np.random.default_rng(1))
    first = batch.measure(batch.cells, 3).measurements
    again = batch.measure(batch.cells[:1], MAX_ROUNDS).measurements
    assert {len(measurement.rounds) for measurement in first.values()} == {3}
    assert [len(measurement.rounds) for measurement in again.values()] == [MAX_ROUNDS] + [3] * 10
    assert again[batch.cells[0]].rounds[:3] == first[batch.cells[0]].rounds
    stored = batch.baseline.throughput[HARDWARE][batch.cells[0].id]
    assert len(stored.measurement.rounds) == BASELINE_ROUNDS


def test_every_check_of_a_run_without_change_is_judged() -> None:
    batch = Batch(Scenario(), 32, np.random.default_rng(1))
    checks, _ = judge_group(batch.asked, batch.measure, Scenario().rule())
    verdicts = [check.verdict for of_cell in checks.values() for check in of_cell.values()]
    assert len(verdicts) == 36
    assert set(verdicts) <= {Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.IMPROVEMENT}
