"""Real runs of the plugin on the reference engine, kept in a folder, for `verdicts_real.py`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Any

from bench.verdicts import BAND, FLOOR, OURS
from pytest_speedbench.cells import MEAN
from pytest_speedbench.engines.launch.hardware import cpu
from pytest_speedbench.files import write_whole
from pytest_speedbench.load.other_processes import OtherProcesses

METRICS = ("acceptance_length", "output_tps", "user_tps")
BATCH_SIZES = (2, 4, 8)
ROUNDS = 3
"""Measured of every cell: the default. A cell that is inconclusive gets up to 9."""
BASELINE = "baseline"
BASELINES, RESULTS, OUTPUT, ABOUT = "baselines", "results.json", "output.txt", "about.json"
TESTS = f"""
import pytest


@pytest.mark.speedbench(split="qualitative", batch_sizes={list(BATCH_SIZES)})
@pytest.mark.parametrize("metric", {METRICS})
def test_no_regression(speedbench, metric):
    speedbench.measure().assert_no_regression(metric)
"""
_TIMEOUT_S = 1800
_PASSED, _FAILED = 0, 1


@dataclass(frozen=True)
class Kind:
    """What is done to the engine in some of the runs."""

    name: str
    text: str
    runs: int
    argument: str = ""
    """Of the engine; none where nothing is changed."""


@dataclass(frozen=True)
class About:
    """What a run was, beside its results."""

    command: list[str]
    """Arguments of pytest."""
    exit_status: int
    """Of pytest: 0 where all tests passed, 1 where some failed."""
    started: str
    processors: str
    """Their name, and how many the run might use."""
    elapsed_s: float
    load: float
    """Processes that ran or waited for a processor, as a mean over the minute before the end; those of the run itself
    are among them."""
    others: float
    """Share of the time of the processors that this process may use that went to anything but the run."""


@dataclass(frozen=True)
class Judged:
    """One check of one run."""

    metric: str
    category: str
    batch_size: int
    verdict: str
    ratio: float | None
    """To the baseline, after all rounds."""
    first_ratio: float | None
    """To the baseline, after the first rounds."""
    tolerance: float
    detectable_loss: float | None
    cause: str | None
    """The word for the cell's regressions."""

    def fails(self, rule: str) -> bool:
        """Whether a rule finds a loss; none of the other rules finds one where there is no figure."""
        if rule == OURS:
            return self.verdict == "regression"
        if self.first_ratio is None:
            return False
        return self.first_ratio < 0.95 if rule == FLOOR else abs(self.first_ratio - 1) > 0.05


RULES = (OURS, FLOOR, BAND)


@dataclass(frozen=True)
class Run:
    """A finished run."""

    name: str
    about: About
    results: dict[str, Any]
    """The document that `--speedbench-json` wrote."""

    @cached_property
    def checks(self) -> list[Judged]:
        """All that were judged."""
        cells = self.results["cells"]
        first = {
            (cell["id"], metric): first_ratio(cell, cells, metric) for cell in cells for metric in METRICS
        }
        return [
            Judged(
                metric=metric,
                category=cell["category"],
                batch_size=cell["batch_size"],
                verdict=check["verdict"],
                ratio=check["ratio"],
                first_ratio=first[cell["id"], metric],
                tolerance=check["tolerance"],
                detectable_loss=check["detectable_loss"],
                cause=cell["cause"] and cell["cause"]["word"],
            )
            for cell in cells
            for metric, check in cell["verdicts"].items()
        ]

    @property
    def rounds(self) -> list[int]:
        """Measured, by cell."""
        return [len(cell["rounds"]) for cell in self.results["cells"] if cell["category"] != MEAN]

    def fails(self, rule: str) -> bool:
        """Whether the run as a whole fails by a rule."""
        if rule == OURS:
            return self.about.exit_status != _PASSED
        return any(check.fails(rule) for check in self.checks)


def all_runs(keep: Path, kinds: Sequence[Kind], output_length: int) -> dict[Kind, list[Run]]:
    """Run what is missing, and read all.

    Args:
        keep: the folder of the runs.
        kinds: what is done.
        output_length: tokens of every request.

    Raises:
        RuntimeError: pytest did not come to an end as it should, or the folder holds runs of another kind.
    """
    one_run(keep, BASELINE, output_length, ["--speedbench-save"])
    plan = [(kind, number) for kind in kinds for number in range(kind.runs)]
    plan.sort(key=lambda each: (each[1] + 0.5) / each[0].runs)
    runs: dict[Kind, list[Run]] = {kind: [] for kind in kinds}
    for place, (kind, number) in enumerate(plan):
        options = [f"--speedbench-engine-arg={kind.argument}"] if kind.argument else []
        run = one_run(keep, f"{kind.name}-{number + 1:02}", output_length, options)
        runs[kind].append(run)
        print(f"{place + 1} of {len(plan)}: {told(run)}", file=sys.stderr, flush=True)
    return runs


def one_run(keep: Path, name: str, output_length: int, options: Sequence[str]) -> Run:
    """One run of pytest, unless it is kept from before.

    Args:
        keep: the folder of the runs.
        name: of this one, and of its folder.
        output_length: tokens of every request.
        options: of pytest, beside those that all runs have.

    Raises:
        RuntimeError: pytest did not come to an end as it should, the baseline was not saved, or the run that is kept
            had other options.
    """
    command = [
        *("-p", "no:cacheprovider", "--speedbench-engine=reference", f"--speedbench-json={RESULTS}"),
        *(f"--speedbench-output-length={output_length}", "--speedbench-ignore-eos", *options),
    ]
    kept = keep / name
    if not (kept / ABOUT).exists():
        shutil.rmtree(kept, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f"verdicts-real-{name}-") as temporary:
            folder = Path(temporary)
            (folder / "test_gate.py").write_text(TESTS)
            (folder / "pytest.ini").write_text("[pytest]\n")
            if name != BASELINE:
                shutil.copytree(keep / BASELINE / BASELINES, folder / BASELINES)
            about = run_pytest(folder, command)
            if name == BASELINE and about.exit_status != _PASSED:
                raise RuntimeError(f"the baseline was not saved:\n{tail_of(folder / OUTPUT)}")
            kept.mkdir(parents=True)
            for written in (OUTPUT, RESULTS):
                shutil.copy(folder / written, kept)
            if name == BASELINE:
                shutil.copytree(folder / BASELINES, kept / BASELINES)
            write_whole(kept / ABOUT, json.dumps(asdict(about), indent=1) + "\n")
    run = Run(name, About(**json.loads((kept / ABOUT).read_text())), json.loads((kept / RESULTS).read_text()))
    if run.about.command != command:
        raise RuntimeError(f"{kept} is of a run with other options; name another folder with --keep")
    return run


def run_pytest(folder: Path, command: list[str]) -> About:
    """Run the tests of a folder, with what they print in a file.

    Raises:
        RuntimeError: pytest broke off, or took longer than half an hour.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    start = time.perf_counter()
    with open(folder / OUTPUT, "w") as output, OtherProcesses() as neighbours:
        try:
            exit_status = subprocess.run(
                [sys.executable, "-m", "pytest", *command],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=_TIMEOUT_S,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"pytest ran for {_TIMEOUT_S} s and was ended") from error
    elapsed_s = time.perf_counter() - start
    if exit_status not in (_PASSED, _FAILED):
        raise RuntimeError(f"pytest ended with status {exit_status}:\n{tail_of(folder / OUTPUT)}")
    return About(
        command=command,
        exit_status=exit_status,
        started=started,
        processors=cpu(),
        elapsed_s=elapsed_s,
        load=os.getloadavg()[0],
        others=neighbours.share,
    )


def tail_of(output: Path) -> str:
    """The last lines that pytest printed."""
    return "\n".join(output.read_text().splitlines()[-20:])


def first_ratio(cell: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    """A metric over its baseline, by the median of the first rounds; of a mean by the mean of its categories.

    Args:
        cell: of the results.
        cells: all of them.
        metric: one that is judged.

    Returns:
        None where the metric, or its baseline, was not measured.
    """
    if cell["category"] == MEAN:
        of = [
            each
            for each in cells
            if each["category"] != MEAN
            and (each["split"], each["batch_size"]) == (cell["split"], cell["batch_size"])
        ]
    else:
        of = [cell]
    now = [[figures[metric] for figures in each["rounds"][:ROUNDS]] for each in of]
    then = [each["verdicts"][metric]["baseline"] for each in of]
    if None in then or any(not values or None in values for values in now):
        return None
    return fmean(median(values) for values in now) / fmean(then)


def told(run: Run) -> str:
    """A line about a run."""
    verdicts = Counter(check.verdict for check in run.checks)
    return (
        f"{run.name}: status {run.about.exit_status}, {run.about.elapsed_s:.0f} s, load {run.about.load:.1f}, others "
        f"{run.about.others:.0%}, {sum(run.rounds)} rounds, "
        + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    )
