"""Results to be reported: cells, checks and causes with chosen numbers."""

from __future__ import annotations

import math
from dataclasses import replace

from pytest_speedbench.cells import MEAN, Cell
from pytest_speedbench.engines.base import Hardware
from pytest_speedbench.gate.baseline import Conditions
from pytest_speedbench.gate.check import Check, Verdict
from pytest_speedbench.gate.estimate import Estimate
from pytest_speedbench.gate.explain.break_even import BreakEven
from pytest_speedbench.gate.explain.cause import Cause, PositionChange
from pytest_speedbench.gate.explain.decomposition import Breakdown, Part
from pytest_speedbench.gate.explain.pattern import Pattern
from pytest_speedbench.metrics.measurement import Measurement
from pytest_speedbench.metrics.pareto import ParetoCurve, ParetoPoint
from pytest_speedbench.report.failure import failure_text
from pytest_speedbench.report.terminal import summary, table
from pytest_speedbench.run.ledger import CellRun
from pytest_speedbench.run.provenance import Provenance
from pytest_speedbench.run.results import RunResult
from pytest_speedbench.settings.target import Target

WIDEST = Cell("throughput_32k", "high_entropy", 512)
CODING = Cell("qualitative", "coding", 32)
MEAN_CELL = Cell("qualitative", MEAN, 32)
TARGET = Target("t", "vllm", "eagle3", 3, model="/models/llama-3.3-70b")
SAVE = "pytest --speedbench-engine=vllm --speedbench-save"
METRICS = ("acceptance_length", "output_tps", "speedup")
POSITIONS = (PositionChange(1, 0.681, 0.640), PositionChange(2, 0.698, 0.690))
DRAFTER = Cause(
    "drafter",
    "A step yields 6.3 % fewer tokens: 94 % of the loss.",
    "check the draft model.",
    Breakdown(
        "output_tps",
        change=Part(0.933, 0.911, 0.956, None),
        acceptance_length=Part(0.937, 0.93, 0.944, 0.94),
        step_latency=Part(1.0001, 0.98, 1.02, 0.0),
        rest=Part(0.9957, 0.981, 1.011, 0.06),
        without_speculation=None,
    ),
    positions=POSITIONS,
)
PATTERN = Pattern(
    "qualitative",
    32,
    "few",
    ("multilingual", "rag"),
    11,
    False,
    "2 of 11 categories fell: multilingual -10.2 % and rag -9.5 %. Ask what these prompts have in common.",
)
BREAK_EVEN = BreakEven(
    "throughput_1k",
    {16: 1.12, 64: 0.93},
    37.4,
    27.1,
    50.2,
    True,
    "throughput_1k: speculation pays up to batch size 37 [95 % CI 27 .. 50] (speedup 1.12 at 16, 0.93 at 64)",
)
CURVE = ParetoCurve(
    "throughput_1k",
    (
        ParetoPoint(1, 350.3, 508.8, on_frontier=True),
        ParetoPoint(8, 1303.4, 439.7, on_frontier=True),
        ParetoPoint(32, 1290.2, 101.5, on_frontier=False),
    ),
)


def measurement(cell: Cell = WIDEST, problems: tuple[str, ...] = (), **metrics: float) -> Measurement:
    return Measurement(
        cell=cell,
        metrics=metrics,
        prompts=(),
        per_position={},
        rounds=(),
        sent=8,
        finished=8,
        failed=0,
        missing={},
        problems=problems,
    )


def estimate(ratio: float, error: float | None) -> Estimate:
    return Estimate(math.log(ratio), error, 77.0, "prompt")


def check(
    verdict: Verdict = Verdict.REGRESSION,
    metric: str = "acceptance_length",
    *,
    ratio: float | None = 0.937,
    error: float | None = 0.0038,
    **changes: object,
) -> Check:
    whole = Check(
        metric,
        verdict,
        tolerance=0.03,
        alpha=0.0001,
        value=2.81,
        baseline=3.0,
        estimate=None if ratio is None else estimate(ratio, error),
        detectable_loss=0.037,
        paired=78,
        prompts=80,
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


SLOWER = check(
    metric="output_tps",
    value=2349.0,
    baseline=2518.0,
    ratio=0.933,
    error=0.0121,
    tolerance=0.05,
    detectable_loss=0.061,
    rounds=3,
    baseline_rounds=9,
)


def run(*cells: CellRun, saving: bool = False, **changes: object) -> RunResult:
    conditions = Conditions(
        "2026-11-23", "0.1.0", "vllm", "0.32.0", "eagle3", 3, 0.0, True, 0, 64, dataset="sample"
    )
    result = RunResult(
        target=TARGET,
        against=None,
        compared_with="baselines/t.yaml",
        save_command=SAVE,
        log=None,
        conditions=conditions,
        hardware=Hardware("NVIDIA H100", 8),
        provenance=Provenance(None, False, None, None, {}),
        cells=cells,
        warnings=(),
        saving=saving,
        messages=(),
        failures={},
        failed_tests=(),
        not_measured_tests=(),
        not_made=(),
        measuring_s=0.0,
    )
    return replace(result, **changes)  # type: ignore[arg-type]


def text_of(result: CellRun, *, log: str | None = None, save: str | None = None) -> list[str]:
    text = failure_text(
        result, result.checks, TARGET, baseline="baselines/t.yaml", log=log, save_command=save
    )
    return text.splitlines()


def below_the_table(result: RunResult) -> list[str]:
    lines = [line for line, _ in summary(result)]
    heading = lines.index("sample prompts (bundled, not SPEED-Bench)") + 1
    return lines[heading + (len(table(result.cells)) if result.cells else 0) :]
