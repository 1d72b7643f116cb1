"""How often the gate's verdicts are wrong, by simulation: false alarms, misses and causes, as Markdown tables.

    python -m bench.verdicts [--runs 2000] [--seed 1] [--processes 2]

Runs have SPEED-Bench's shape (`simulated_runs.py` says what they are made of): 11 categories of 80 prompts at 3
batch sizes, 3 metrics each, and the means over categories: 108 checks. A run measures 3 rounds, and up to 9 where
that is inconclusive; its baseline holds 9. They are judged by the code that judges real runs (`gate.sequential`), at the
default tolerances unless a row names another. Beside it, the same runs are judged by rules that engine repositories
use, on the first 3 rounds. Every figure has its 95 % interval after Clopper and Pearson.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np

from bench.simulated_runs import (
    BATCH_SIZES,
    HARDWARE,
    METRICS,
    PREFILL,
    ROUNDS,
    STEP_S,
    TOKENS,
    TOLERANCES,
    Batch,
    Rounds,
    Scenario,
)
from pytest_speedbench.gate.check import Check, Verdict
from pytest_speedbench.gate.explain.cause import explain
from pytest_speedbench.gate.explain.decomposition import Compared
from pytest_speedbench.gate.noise import Sides, Variance, median_variance, satterthwaite
from pytest_speedbench.gate.sequential import Measured, judge_group
from pytest_speedbench.speed_bench import DOMAINS

if TYPE_CHECKING:
    from typing import TypeAlias

    from numpy.typing import NDArray

    from pytest_speedbench.cells import Cell

    Bools: TypeAlias = NDArray[np.bool_]
    Floats: TypeAlias = NDArray[np.float64]

OURS, FLOOR, BAND, T_TEST = "this gate", "floor at 95 %", "band of 5 %", "t-test over requests"
RULES = (OURS, FLOOR, BAND, T_TEST)
POOLED = "this gate, noise pooled as one"
CODING = "coding"


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    text: str
    scenario: Scenario
    metric: str = ""
    """What should be caught; empty where nothing changed."""
    categories: tuple[str, ...] = ()
    """In which it should be caught; empty stands for their mean."""
    wanted: str = ""
    """What is asked for."""
    word: str = ""
    """The cause that should be named."""


NOTHING_CHANGED = (
    Row("normal noise", Scenario()),
    Row("2 % of all rounds take 1 / 0.85 as long", Scenario(hiccups=0.02)),
    Row("5 % of all rounds do", Scenario(hiccups=0.05)),
    Row("cells are unlike: the log of their noise has a SD of 0.5", Scenario(unlike=0.5)),
    Row("half of the variance is that of a round of all cells together", Scenario(together=0.5)),
    Row("the run is 1.5 times as noisy as its baseline", Scenario(noisier_run=1.5)),
    Row("whole runs are slower or faster with a SD of 1 %, which rounds cannot show", Scenario(drift=0.01)),
    Row("1 prompt in 10 takes another path in each pass, with a SD of 28 %", Scenario(diverging=0.1)),
)
STRICT = {**TOLERANCES, "acceptance_length": (0.01, 0.01)}
LOSSES = (
    Row(
        "acceptance length -5 % in one category",
        Scenario(acceptance_loss={CODING: 0.05}),
        "acceptance_length",
        (CODING,),
        ">= 99 %",
    ),
    Row(
        "acceptance length -3 % in one category, tolerance 1 %",
        Scenario(acceptance_loss={CODING: 0.03}, tolerances=STRICT),
        "acceptance_length",
        (CODING,),
        ">= 90 %",
    ),
    Row(
        "acceptance length -2 % everywhere: its mean",
        Scenario(acceptance_loss=dict.fromkeys(DOMAINS, 0.02)),
        "acceptance_length",
        wanted=">= 95 %",
    ),
    Row(
        "step latency +10 % everywhere: output TPS of each category",
        Scenario(slower=dict.fromkeys(DOMAINS, 1.1)),
        "output_tps",
        DOMAINS,
        ">= 95 %",
        "system",
    ),
    Row(
        "step latency +10 % everywhere: mean output TPS",
        Scenario(slower=dict.fromkeys(DOMAINS, 1.1)),
        "output_tps",
        wanted=">= 95 %",
    ),
    Row(
        "step latency +10 % in one category: its output TPS",
        Scenario(slower={CODING: 1.1}),
        "output_tps",
        (CODING,),
        word="system",
    ),
    Row(
        "acceptance length -5 % everywhere: of each category",
        Scenario(acceptance_loss=dict.fromkeys(DOMAINS, 0.05)),
        "acceptance_length",
        DOMAINS,
        ">= 99 %",
        "drafter",
    ),
    Row(
        "acceptance length -5 % everywhere: mean output TPS",
        Scenario(acceptance_loss=dict.fromkeys(DOMAINS, 0.05)),
        "output_tps",
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What became of one simulated run."""

    failed: dict[str, bool]
    """By rule: whether any check failed."""
    caught: dict[str, list[bool]]
    """By rule: whether what a row names was caught, in each of its categories."""
    words: Counter[str]
    """Causes named where it was caught."""
    rounds: float
    """Measured of a cell, on average."""
    inconclusive: float
    """Share of checks that stayed so."""
    detectable: dict[str, list[float]]
    """Detectable losses by metric, of categories and of means."""


@dataclass(frozen=True)
class Runner:
    """Simulates runs on several processors."""

    pool: ProcessPoolExecutor
    seed: int

    def outcomes(self, row: Row, runs: int, batch_sizes: Sequence[int], *, pooled: int = 0) -> list[Outcome]:
        """Of a row; run i is the same however many there are, and the first `pooled` are judged by that rule too."""
        task = partial(simulate, row, batch_sizes, self.seed, pooled)
        return list(self.pool.map(task, range(runs), chunksize=5))


def main() -> None:
    parser = argparse.ArgumentParser(description="Count false alarms, misses and wrong causes by simulation.")
    parser.add_argument(
        "--runs", type=int, default=2000, help="of the first row; a quarter of it for the others"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    arguments = parser.parse_args()
    start = time.perf_counter()
    with ProcessPoolExecutor(arguments.processes) as pool:
        runner = Runner(pool, arguments.seed)
        for line in false_alarms(runner, arguments.runs):
            print(line, flush=True)
        print()
        for line in misses(runner, max(arguments.runs // 4, 1)):
            print(line, flush=True)
    print(
        f"\nSeed {arguments.seed}, Python {platform.python_version()}, numpy {np.__version__}: "
        f"{time.perf_counter() - start:.0f} s in {arguments.processes} processes."
    )


def false_alarms(runner: Runner, runs: int) -> Iterator[str]:
    """Runs of an unchanged engine that fail at all.

    Args:
        runner: simulates.
        runs: of the first row; the others have a quarter, and so has noise pooled as one.
    """
    yield "| nothing changed, and | runs | " + " | ".join((*RULES, POOLED)) + " |"
    yield "|---" * (len(RULES) + 3) + "|"
    told = []
    for number, row in enumerate(NOTHING_CHANGED):
        part = max(runs // 4, 1)
        found = runner.outcomes(row, part if number else runs, BATCH_SIZES, pooled=part)
        shares = [share([outcome.failed[rule] for outcome in found]) for rule in RULES]
        shares.append(share([outcome.failed[POOLED] for outcome in found[:part]]))
        yield f"| {row.text} | {len(found)} | {' | '.join(shares)} |"
        told.append(f"| {row.text} | {effort(found)} |")
    yield ""
    yield (
        "| nothing changed, and | rounds a cell | inconclusive | "
        + " | ".join(f"{name} sees" for name in found[0].detectable)
        + " |"
    )
    yield "|---" * (len(found[0].detectable) + 3) + "|"
    yield from told


def misses(runner: Runner, runs: int) -> Iterator[str]:
    """Losses that are caught, and the causes named."""
    yield "| what is lost | asked for | trials | " + " | ".join(RULES) + " | cause named |"
    yield "|---" * (len(RULES) + 4) + "|"
    for row in LOSSES:
        found = runner.outcomes(row, runs, BATCH_SIZES[1:2])
        caught = {rule: [each for outcome in found for each in outcome.caught[rule]] for rule in RULES}
        words = sum((outcome.words for outcome in found), Counter[str]())
        named = f"{row.word}: {share_of(words[row.word], words.total())}" if row.word else ""
        figures = " | ".join(share(caught[rule]) for rule in RULES)
        yield f"| {row.text} | {row.wanted} | {len(caught[OURS])} | {figures} | {named} |"


def effort(outcomes: Sequence[Outcome]) -> str:
    """What verdicts cost, and what they are worth: the detectable loss of a median check, and of the worst of a run."""
    rounds = np.mean([outcome.rounds for outcome in outcomes])
    inconclusive = np.mean([outcome.inconclusive for outcome in outcomes])
    seen = []
    for name in outcomes[0].detectable:
        typical = np.median([loss for outcome in outcomes for loss in outcome.detectable[name]])
        worst = np.median([max(outcome.detectable[name]) for outcome in outcomes])
        seen.append(f"{typical:.1%}, worst {worst:.1%}")
    return f"{rounds:.1f} | {inconclusive:.2%} | " + " | ".join(seen)


def share(found: Sequence[bool]) -> str:
    """How many of them, with a 95 % interval."""
    return share_of(sum(found), len(found))


def share_of(count: int, of: int) -> str:
    """A share in percent with its 95 % interval (Clopper and Pearson, 1934)."""
    from scipy.special import betaincinv

    if not of:
        return "none"
    low = float(betaincinv(count, of - count + 1, 0.025)) if count else 0.0
    high = float(betaincinv(count + 1, of - count, 0.975)) if count < of else 1.0
    return f"{100 * count / of:.2f} % [{100 * low:.2f} .. {100 * high:.2f}]"


def simulate(row: Row, batch_sizes: Sequence[int], seed: int, pooled: int, run: int) -> Outcome:
    """Draw one run and its baseline, and judge it by every rule.

    Args:
        row: what happens to it.
        batch_sizes: of the run.
        seed: of all runs.
        pooled: how many runs are judged with pooled noise too.
        run: number of this one.
    """
    random = np.random.default_rng([seed, run])
    drift = math.exp(row.scenario.drift * random.standard_normal()) if row.scenario.drift else 1.0
    failed = dict.fromkeys((*RULES, POOLED), False)
    caught: dict[str, list[bool]] = {rule: [] for rule in RULES}
    words = Counter[str]()
    checks: list[tuple[Cell, Check]] = []
    rounds = []
    for batch_size in batch_sizes:
        batch = Batch(row.scenario, batch_size, random, drift)
        judged, measured = judge_group(batch.asked, batch.measure, row.scenario.rule())
        checks += flat(judged)
        rounds += [len(measurement.rounds) for measurement in measured.measurements.values()]
        if run < pooled:
            with mock.patch("pytest_speedbench.gate.estimate.median_error", pooled_error):
                by_pool, _ = judge_group(batch.asked, batch.measure, row.scenario.rule())
            failed[POOLED] |= any_regression(flat(by_pool))
        cells = [*batch.cells, batch.mean]
        for rule, judge in OTHER_RULES.items():
            fails = {metric: judge(batch, metric) for metric in METRICS}
            failed[rule] |= any(bool(each.any()) for each in fails.values())
            caught[rule] += [bool(fails[row.metric][cells.index(cell)]) for cell in concerned(row, cells)]
        for cell in concerned(row, cells):
            caught[OURS].append(judged[cell][row.metric].verdict is Verdict.REGRESSION)
            if caught[OURS][-1] and row.word:
                words[cause_of(batch, cell, judged[cell], measured)] += 1
    failed[OURS] = any_regression(checks)
    return Outcome(
        failed=failed,
        caught=caught,
        words=words,
        rounds=sum(rounds) / len(rounds),
        inconclusive=sum(check.verdict is Verdict.INCONCLUSIVE for _, check in checks) / len(checks),
        detectable={
            f"{metric} of {'the mean' if of_means else 'a category'}": [
                math.inf if check.detectable_loss is None else check.detectable_loss
                for cell, check in checks
                if check.metric == metric and cell.is_mean is of_means
            ]
            for metric in METRICS
            for of_means in (False, True)
        },
    )


def concerned(row: Row, cells: Sequence[Cell]) -> list[Cell]:
    """The cells in which a row's loss should be caught."""
    if not row.metric:
        return []
    return [cell for cell in cells if (cell.category in row.categories if row.categories else cell.is_mean)]


def flat(judged: Mapping[Cell, Mapping[str, Check]]) -> list[tuple[Cell, Check]]:
    """Every check with its cell."""
    return [(cell, check) for cell, of_cell in judged.items() for check in of_cell.values()]


def any_regression(checks: Sequence[tuple[Cell, Check]]) -> bool:
    """Whether the run fails."""
    return any(check.verdict is Verdict.REGRESSION for _, check in checks)


def cause_of(batch: Batch, cell: Cell, checks: Mapping[str, Check], measured: Measured) -> str:
    """The word for a cell's regressions."""
    group = [Compared.of(measured.measurements[each], batch.baseline, HARDWARE) for each in batch.cells]
    failed = [metric for metric, check in checks.items() if check.verdict is Verdict.REGRESSION]
    return explain(group[batch.cells.index(cell)], group, failed).word


def below_the_floor(batch: Batch, metric: str) -> Bools:
    """A floor at 95 % of the baseline's value, as `assert accept_length > 2.85` is."""
    return ratio(batch, metric) < 0.95


def outside_the_band(batch: Batch, metric: str) -> Bools:
    """A relative tolerance of 5 % in both directions."""
    return np.abs(ratio(batch, metric) - 1) > 0.05


def ratio(batch: Batch, metric: str) -> Floats:
    """What the first rounds gave over what the baseline's gave, by median; shape (cells + 1,), the mean last."""
    now = np.median(by_round(batch, batch.run, metric)[:, :ROUNDS], axis=1)
    then = np.median(by_round(batch, batch.before, metric), axis=1)
    return np.append(now / then, now.mean() / then.mean())


def by_round(batch: Batch, side: Rounds, metric: str) -> Floats:
    """A metric of every round; shape (cells, rounds)."""
    if metric == "output_tps":
        return batch.output_tps(side)
    return side.acceptance_length if metric == "acceptance_length" else side.user_tps


def slower_by_requests(batch: Batch, metric: str) -> Bools:
    """Welch's t-test over all requests of all rounds, unpaired, one-sided at 5 %; the mean is of all cells."""
    from scipy.special import stdtr

    moments = []
    for side, rounds in ((batch.run, ROUNDS), (batch.before, None)):
        values = by_request(side, metric)[:, :, :rounds]
        rows = [*values.reshape(len(values), -1), values.ravel()]
        moments.append([(row.mean(), row.var(ddof=1) / row.size, row.size - 1) for row in rows])
    (now, error, freedom), (then, error_then, freedom_then) = (np.array(side).T for side in moments)
    total = error + error_then
    p = stdtr(total**2 / (error**2 / freedom + error_then**2 / freedom_then), (now - then) / np.sqrt(total))
    found: Bools = p < 0.05
    return found


def by_request(side: Rounds, metric: str) -> Floats:
    """A metric of every request; shape (cells, prompts, rounds)."""
    steps = side.steps.astype(np.float64)
    if metric == "acceptance_length":
        return (TOKENS - 1) / steps
    decode_s: Floats = steps * side.step_s[:, None, :]
    if metric == "user_tps":
        return (TOKENS - 1) / decode_s
    return TOKENS / (decode_s + PREFILL / (1 - PREFILL) * STEP_S * float(steps.mean()))


OTHER_RULES = {FLOOR: below_the_floor, BAND: outside_the_band, T_TEST: slower_by_requests}


def pooled_error(cell: Sides, batch: Sequence[Sides]) -> Variance | None:
    """Squared error of a cell's medians with one pool for all that do not fail an F test at 1 %.

    A simpler rule than that of `gate.noise`: all rounds of all cells and both sides are one pool, unless the run's
    side as a whole is noisier than the baseline's, and a cell's side far noisier than its pool is on its own.
    """

    def variance(values: Sequence[Sequence[float]]) -> Variance:
        freedom = sum(len(each) - 1 for each in values if each)
        return Variance(sum(float(np.var(each)) * len(each) for each in values if each) / freedom, freedom)

    run, baseline = ([each[side] for each in batch] for side in (0, 1))
    pools = [variance([*run, *baseline])] * 2
    sides = [variance(run), variance(baseline)]
    if noisier(*sides):
        pools = sides
    used = []
    for values, pool in zip(cell, pools, strict=True):
        own = variance([values])
        used.append(own if noisier(own, pool) else pool)
    parts = [
        Variance(each.value * median_variance(len(values)), each.degrees_of_freedom)
        for each, values in zip(used, cell, strict=True)
    ]
    total = sum(part.value for part in parts)
    one_pool = used[0] is used[1]
    return Variance(total, used[0].degrees_of_freedom if one_pool else satterthwaite(parts, total))


def noisier(one: Variance, other: Variance) -> bool:
    """An F test at 1 %."""
    from scipy.special import fdtrc

    return bool(fdtrc(one.degrees_of_freedom, other.degrees_of_freedom, one.value / other.value) < 0.01)


if __name__ == "__main__":
    main()
