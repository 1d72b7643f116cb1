"""How often the gate's verdicts are wrong, in real runs on the reference engine: as Markdown tables.

    python -m bench.verdicts_real [--runs 30] [--losses 5] [--keep DIR]

Every run is one that a user might start: pytest in a process and a folder of its own, which launches the engine,
measures 11 categories of 8 prompts at 3 batch sizes, and judges 3 metrics of each and of their means: 108 checks, at
the default tolerances, rounds and alpha. They are compared with a baseline that the same tests saved first. Most runs
change nothing; in some the engine is made worse by a known amount. The order mixes them, so that a busy hour of the
machine is in all of them.

Beside the gate, the same runs are judged by two rules that engine repositories use, on the first 3 rounds. A t-test
over requests needs the times of single requests, which results do not hold: `verdicts.py` has it, by simulation.

With `--keep` every finished run stays in that folder, and a later call with the same arguments starts only those that
are missing. Intervals are after Clopper and Pearson. They take runs for independent, which runs against one and the same
baseline are not quite.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

from bench.real_runs import METRICS, ROUNDS, RULES, Judged, Kind, Run, all_runs
from bench.verdicts import OURS, share
from pytest_speedbench.cells import MEAN


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Count false alarms, misses and wrong causes in real runs on the reference engine."
    )
    parser.add_argument("--runs", type=int, default=30, help="with nothing changed")
    parser.add_argument("--losses", type=int, default=5, help="runs with each known loss")
    parser.add_argument("--step-slowdown", type=float, default=1.1)
    parser.add_argument("--draft-quality", type=float, default=0.955)
    parser.add_argument("--output-length", type=int, default=20, help="tokens of every request")
    parser.add_argument(
        "--keep", type=Path, help="folder of the runs; those that are in it are not run again"
    )
    arguments = parser.parse_args()
    slowdown, quality = arguments.step_slowdown, arguments.draft_quality
    nothing = Kind("unchanged", "nothing is", arguments.runs)
    worse = (
        Kind(
            f"slower-{slowdown:g}",
            f"steps take {slowdown:g} times as long",
            arguments.losses,
            f"--step-slowdown={slowdown:g}",
        ),
        Kind(
            f"weaker-{quality:g}",
            f"drafts are accepted {quality:g} times as often",
            arguments.losses,
            f"--draft-quality={quality:g}",
        ),
    )
    with tempfile.TemporaryDirectory(prefix="verdicts-real-") as temporary:
        keep = (arguments.keep or Path(temporary)).resolve()
        try:
            runs = all_runs(keep, (nothing, *worse), arguments.output_length)
        except RuntimeError as error:
            sys.exit(f"{parser.prog}: {error}")
    for line in report(nothing, worse, runs):
        print(line)


def report(nothing: Kind, worse: Sequence[Kind], runs: Mapping[Kind, Sequence[Run]]) -> Iterator[str]:
    """All tables, as lines of Markdown."""
    yield f"`{' '.join(['python -m bench.verdicts_real', *sys.argv[1:]])}`"
    unchanged = runs[nothing]
    if unchanged:
        yield ""
        yield from false_alarms(unchanged)
        yield ""
        yield from scatter(unchanged)
    if any(runs[kind] for kind in worse):
        yield ""
        yield from misses(worse, runs)
    yield ""
    yield from effort({kind.text: found for kind, found in runs.items() if found})
    yield ""
    machines = dict.fromkeys(run.about.processors for found in runs.values() for run in found)
    yield (
        f"{'; '.join(machines)}; {platform.system()} {platform.release()}, Python {platform.python_version()}, pytest "
        f"{version('pytest')}, pytest-speedbench {version('pytest-speedbench')}, numpy {version('numpy')}, scipy "
        f"{version('scipy')}."
    )


def false_alarms(runs: Sequence[Run]) -> Iterator[str]:
    """What failed although nothing was changed."""
    checks = [check for run in runs for check in run.checks]
    runs_failed = (share([run.fails(rule) for run in runs]) for rule in RULES)
    checks_failed = (part([check.fails(rule) for check in checks]) for rule in RULES)
    yield f"| nothing is changed | {' | '.join(RULES)} |"
    yield "|---" * (len(RULES) + 1) + "|"
    yield f"| runs that fail at all, of {len(runs)} | {' | '.join(runs_failed)} |"
    yield f"| checks that fail, of {len(checks)} | {' | '.join(checks_failed)} |"
    yield ""
    counted = Counter(check.verdict for check in checks)
    yield f"Verdicts: {', '.join(f'{count} {verdict}' for verdict, count in counted.most_common())}."
    for run in runs:
        for check in run.checks:
            if check.verdict not in ("pass", "improvement", "inconclusive"):
                yield (
                    f"{run.name}: {check.category} bs{check.batch_size} {check.metric} {check.verdict} "
                    f"{percent(check.ratio)}, cause {check.cause}."
                )


def scatter(runs: Sequence[Run]) -> Iterator[str]:
    """How far unchanged runs lie from their baseline, by metric."""
    yield (
        "| nothing is changed | checks | lowest | highest | lowest after 3 rounds | inconclusive "
        "| loss that the median check sees, the worst |"
    )
    yield "|---" * 7 + "|"
    for metric, of_mean, checks in by_metric(runs):
        ratios = [check.ratio for check in checks if check.ratio is not None]
        first = [check.first_ratio for check in checks if check.first_ratio is not None]
        seen = [math.inf if check.detectable_loss is None else check.detectable_loss for check in checks]
        yield (
            f"| {named(metric, of_mean)} | {len(checks)} | {percent(min(ratios, default=None))} "
            f"| {percent(max(ratios, default=None))} | {percent(min(first, default=None))} "
            f"| {part([check.verdict == 'inconclusive' for check in checks])} "
            f"| {100 * median(seen):.1f} %, {100 * max(seen):.1f} % |"
        )


def misses(kinds: Sequence[Kind], runs: Mapping[Kind, Sequence[Run]]) -> Iterator[str]:
    """What was caught of known losses. What the row of a metric that lost nothing says is a false alarm."""
    yield (
        "| what is done | metric | median change | checks | beyond the tolerance | "
        + " | ".join(RULES)
        + " | runs caught | causes |"
    )
    yield "|---" * (len(RULES) + 7) + "|"
    for kind in kinds:
        for metric, of_mean, checks in by_metric(runs[kind]):
            ratios = [check.ratio for check in checks if check.ratio is not None]
            beyond = sum(check.ratio is not None and check.ratio < 1 - check.tolerance for check in checks)
            caught = sum(
                any(
                    check.fails(OURS)
                    for check in run.checks
                    if (check.metric, check.category == MEAN) == (metric, of_mean)
                )
                for run in runs[kind]
            )
            failed = (part([check.fails(rule) for check in checks]) for rule in RULES)
            causes = Counter(check.cause or "none" for check in checks if check.fails(OURS))
            yield (
                f"| {kind.text} | {named(metric, of_mean)} | {percent(median(ratios) if ratios else None)} "
                f"| {len(checks)} | {beyond} "
                f"| {' | '.join(failed)} "
                f"| {caught} of {len(runs[kind])} "
                f"| {', '.join(f'{word} {count}' for word, count in causes.most_common()) or '-'} |"
            )


def effort(runs: Mapping[str, Sequence[Run]]) -> Iterator[str]:
    """What the runs took, and how busy the machine was with others."""
    yield (
        "| what is done | runs | seconds | rounds of a run | cells measured again | load average "
        "| of the processors' time others had |"
    )
    yield "|---" * 7 + "|"
    for text, found in runs.items():
        rounds = [run.rounds for run in found]
        again = [sum(count > ROUNDS for count in of_run) for of_run in rounds]
        yield (
            f"| {text} | {len(found)} | {spread([run.about.elapsed_s for run in found], '.0f')} "
            f"| {spread([sum(of_run) for of_run in rounds], '.0f')} "
            f"| {spread(again, '.0f')} of {len(rounds[0])} "
            f"| {spread([run.about.load for run in found], '.1f')} "
            f"| {spread([100 * run.about.others for run in found], '.0f')} % |"
        )


def by_metric(runs: Sequence[Run]) -> Iterator[tuple[str, bool, list[Judged]]]:
    """Checks of all runs by metric, those of categories before those of their means."""
    for metric in METRICS:
        for of_mean in (False, True):
            checks = [
                check
                for run in runs
                for check in run.checks
                if (check.metric, check.category == MEAN) == (metric, of_mean)
            ]
            if checks:
                yield metric, of_mean, checks


def named(metric: str, of_mean: bool) -> str:
    return f"{metric} of {'the mean' if of_mean else 'a category'}"


def part(found: Sequence[bool]) -> str:
    """How many, without an interval: checks of one run are not independent."""
    return f"{sum(found)} ({100 * sum(found) / len(found):.1f} %)"


def percent(ratio: float | None) -> str:
    """A ratio as a change."""
    return "-" if ratio is None else f"{round(100 * (ratio - 1), 1) + 0.0:+.1f} %"  # there is no -0.0 %


def spread(values: Sequence[float], form: str) -> str:
    """The median of some figures, with the least and the greatest."""
    return f"{median(values):{form}} ({min(values):{form}} .. {max(values):{form}})"


if __name__ == "__main__":
    main()
