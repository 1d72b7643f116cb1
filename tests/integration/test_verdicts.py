"""Every verdict and every cause, as a person meets it: a real run of the reference engine, made worse on purpose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_speedbench.gate.baseline import Reference
from pytest_speedbench.gate.store import load, save
from pytest_speedbench.load.other_processes import OtherProcesses
from pytest_speedbench.metrics.measurement import Measurement, PromptTally
from tests.integration.conftest import Run

BASELINE = Path("baselines", "reference-draft_model-k3.yaml")
WEAKER = "--speedbench-engine-arg=--draft-quality=0.8"
SLOWER = "--speedbench-engine-arg=--step-slowdown=1.5"
THREE_ROUNDS = ("--speedbench-rounds=3", "--speedbench-max-rounds=3")

THROUGHPUT = """
    import pytest

    @pytest.mark.speedbench(split="throughput_1k", categories=["mixed"], batch_sizes=[4])
    def test_throughput(speedbench):
        speedbench.measure().assert_no_regression("output_tps", "user_tps")

    @pytest.mark.speedbench(split="throughput_1k", categories=["mixed"], batch_sizes=[4])
    def test_acceptance_length(speedbench):
        speedbench.measure().assert_no_regression("acceptance_length")
"""


@pytest.fixture
def timed(pytester: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """As `saved`, with throughput gated too, over three rounds of longer outputs.

    What else this machine computes meanwhile, such as other tests, is left out of causes: they may have to blame it.
    """
    undisturbed = property(lambda self: 0.0, lambda self, share: None)
    monkeypatch.setattr(OtherProcesses, "share", undisturbed, raising=False)
    pytester.makepyfile(test_gate=THROUGHPUT)

    def timed(*arguments: str) -> pytest.RunResult:
        return run("--speedbench-output-length=128", *THREE_ROUNDS, *arguments)

    assert timed("--speedbench-save").ret == 0
    return timed


def edited(path: Path, change: Callable[[Measurement], Measurement], hardware: str | None = None) -> None:
    """Rewrite what a baseline holds of every cell, and what it was measured on."""
    baseline = load(path)
    assert baseline is not None

    def of(filed: Mapping[str, Mapping[str, Reference]]) -> dict[str, dict[str, Reference]]:
        return {
            hardware or key: {
                cell: replace(found, measurement=change(found.measurement)) for cell, found in cells.items()
            }
            for key, cells in filed.items()
        }

    save(path, replace(baseline, acceptance=of(baseline.acceptance), throughput=of(baseline.throughput)))


def of_prompts(change: Callable[[PromptTally], PromptTally]) -> Callable[[Measurement], Measurement]:
    return lambda found: replace(found, prompts=tuple(map(change, found.prompts)))


def halve_the_steps(tally: PromptTally) -> PromptTally:
    """Of one prompt of eight."""
    return replace(tally, steps=(tally.steps or 0) // 2) if tally.question_id == "sample-qa-01" else tally


# Verdicts


def test_an_unchanged_engine_passes(saved: Run) -> None:
    result = saved()
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        [
            "*qualitative-coding-bs2*pass +0.0 %",
            "*qualitative-qa-bs2*pass +0.0 %",
            "*qualitative-mean-bs2*pass +0.0 %",
            "sensitivity (95 % power): acceptance length 3.0 % per category, 1.0 % on the",
            "  mean",
        ]
    )


def test_a_weaker_drafter_is_a_regression_of_acceptance_length(saved: Run) -> None:
    result = saved(WEAKER)
    result.assert_outcomes(failed=3)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "qualitative / coding / batch size 2: acceptance_length -* %, drafter",
            "reference, draft_model k=3",
            "  acceptance_length * -> * -* %  [[]95 % CI -* .. -*]",
            "*REGRESSION (tolerance -3 %)",
            "  cause: drafter. Fewer drafts are accepted, *",
            "  accepted less often at position 1: 0.* -> 0.*",
            "  next: check the draft model*",
            "  differs from the baseline: engine_args none -> --draft-quality=0.8",
            "  8 of 8 prompts paired with baselines/reference-draft_model-k3.yaml",
            "  engine log: .speedbench/logs/reference-*.log",
            "  if this is intended, store it as the new baseline:",
            "    pytest *--speedbench-save",
            "qualitative / mean / batch size 2: acceptance_length -* %,*",
            "  pattern: both categories fell alike*",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_cell_without_a_baseline_fails_and_says_how_to_store_one(run: Run) -> None:
    result = run()
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        [
            "*NO-BASELINE: no baseline is stored for this target",
            "  to store this run as the baseline:",
            "    pytest * --speedbench-save",
        ]
    )


def test_a_better_drafter_is_an_improvement_and_the_baseline_is_called_stale(run: Run) -> None:
    assert run("--speedbench-save", WEAKER).ret == 0
    result = run()
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        ["improvement, qualitative", "  *-bs2 * AL  * -> * +* %  *", "  the baseline is stale"]
    )
    run("-v").stdout.fnmatch_lines(["*IMPROVEMENT (by more than 3 %): the baseline is stale"])


def test_other_prompts_are_incomparable(pytester: pytest.Pytester, saved: Run) -> None:
    edited(pytester.path / BASELINE, of_prompts(lambda tally: replace(tally, digest="0123456789abcdef")))
    result = saved()
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        ["*INCOMPARABLE: only 0 of 8 prompts are those of the", "*baseline: 8 changed text"]
    )


def test_another_output_length_is_incomparable(saved: Run) -> None:
    result = saved("--speedbench-output-length=16")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["*INCOMPARABLE: output_length 32 -> 16*"])


def test_throughput_of_other_hardware_skips_and_acceptance_length_does_not(
    pytester: pytest.Pytester, run: Run
) -> None:
    pytester.makepyfile(test_gate=THROUGHPUT)
    assert run("--speedbench-save").ret == 0
    edited(pytester.path / BASELINE, lambda found: found, "NVIDIA H100 80GB HBM3 x 8")
    result = run("-rs")
    result.assert_outcomes(skipped=1, passed=1)
    result.stdout.fnmatch_lines(
        ["SKIPPED*stored for NVIDIA H100 80GB HBM3 x 8, and this is modelled accelerator x 1"]
    )


def test_a_loss_too_noisy_to_be_sure_of_warns_or_fails(pytester: pytest.Pytester, saved: Run) -> None:
    """One prompt of eight lost much, the others nothing: below the tolerance, and no surer than that."""

    edited(pytester.path / BASELINE, of_prompts(halve_the_steps))
    result = saved("--speedbench-category=qa")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["qualitative-qa-bs2*inconclusive -* %", "*INCONCLUSIVE (tolerance -3 %, sensitivity * %)"]
    )
    saved("--speedbench-category=qa", "--speedbench-inconclusive=fail").assert_outcomes(failed=1)


def test_what_is_inconclusive_is_measured_again_and_nothing_else(
    pytester: pytest.Pytester, saved: Run
) -> None:
    edited(pytester.path / BASELINE, of_prompts(halve_the_steps))
    result = saved("--speedbench-max-rounds=2", "--speedbench-temperature=0", "-k", "coding or qa")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["qualitative / qa / batch size 2: acceptance_length -*"])
    result.stdout.fnmatch_lines(["*qualitative-coding-bs2*pass +0.0 %"])


def test_an_output_that_repeats_itself_is_no_measurement(saved: Run) -> None:
    """It would be an improvement: what repeats is easy to draft."""
    longer = "--speedbench-output-length=96"
    assert saved(longer, "--speedbench-save").ret == 0
    result = saved(longer, "--speedbench-engine-arg=--fault=loop")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["*INVALID: degenerate output: *"])
    saved(longer, "--speedbench-engine-arg=--fault=loop", "--speedbench-degenerate=1").assert_outcomes(
        passed=3
    )


def test_tolerance_is_the_loss_one_accepts(saved: Run) -> None:
    saved(WEAKER).assert_outcomes(failed=3)
    category = "--speedbench-tolerance=acceptance_length=0.5"
    saved(WEAKER, category).assert_outcomes(failed=1, passed=2)
    mean = "--speedbench-tolerance=mean_acceptance_length=0.5"
    saved(WEAKER, category, mean).assert_outcomes(passed=3)


def test_acceptance_length_of_other_hardware_has_a_tolerance_of_its_own(
    pytester: pytest.Pytester, saved: Run
) -> None:
    edited(pytester.path / BASELINE, lambda found: found, "NVIDIA H100 80GB HBM3 x 8")
    result = saved(WEAKER)
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["*accelerator x 1: compared at a tolerance of 3 %"])
    result = saved(WEAKER, "--speedbench-tolerance=other_hardware_acceptance_length=0.5")
    result.assert_outcomes(passed=3)


# Causes


def test_slower_steps_are_the_system_s_and_leave_acceptance_length_alone(timed: Run) -> None:
    result = timed(SLOWER)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            "throughput_1k / mixed / batch size 4: *_tps -* %, system",
            "  output_tps * -> * -* %  [[]95 % CI -* .. -*]",
            "*REGRESSION (tolerance -5 %)",
            "  cause: system. A step takes * % longer: * of the loss.",
            "*slower steps * -* %  [[]-* .. -*]*",
            "  next: profile a decode step*",
            "  3 rounds against 3*",
        ]
    )


def test_fewer_tokens_a_step_are_the_drafter_s(timed: Run) -> None:
    result = timed("--speedbench-engine-arg=--draft-quality=0.6")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["  cause: drafter. *", "*fewer tokens a step *-* %  [[]-* .. -*]*"])
    result.stdout.no_fnmatch_line("*cause: system*")


def test_both_can_be_to_blame(timed: Run) -> None:
    result = timed("--speedbench-engine-arg=--draft-quality=0.6", SLOWER)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*_tps -* %, both", "  cause: both. *"])


def test_what_is_neither_is_called_unclear(pytester: pytest.Pytester, timed: Run) -> None:
    """Throughput fell with as many tokens a step, and steps as quick as before."""

    def faster(found: Measurement) -> Measurement:
        metrics = {
            name: 2 * value if name == "output_tps" else value for name, value in found.metrics.items()
        }
        rounds = [
            replace(figures, output_tps=figures.output_tps and 2 * figures.output_tps)
            for figures in found.rounds
        ]
        return replace(found, metrics=metrics, rounds=tuple(rounds))

    edited(pytester.path / BASELINE, faster)
    result = timed()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        ["*output_tps -* %, unclear", "  cause: unclear. *", "  next: look at prefill*"]
    )


# In CI


def test_the_short_summary_has_a_line_for_each_failure(saved: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest cuts nothing off there where CI is set."""
    monkeypatch.setenv("CI", "true")
    result = saved(WEAKER)
    summary = result.outlines[
        result.outlines.index(
            "=========================== short test summary info ============================"
        ) :
    ]
    assert len(summary) == 1 + 3 + 1
    assert summary[1].endswith(", drafter")
