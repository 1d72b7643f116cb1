"""Every verdict, as a person meets it: a real run of the reference engine, made worse on purpose."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.conftest import Run

BASELINE = Path("baselines", "reference-draft_model-k3.yaml")

THROUGHPUT = """
    import pytest

    @pytest.mark.speedbench(split="throughput_1k", categories=["mixed"], batch_sizes=[4])
    def test_throughput(speedbench):
        speedbench.measure().assert_no_regression("output_tps", "user_tps")

    @pytest.mark.speedbench(split="throughput_1k", categories=["mixed"], batch_sizes=[4])
    def test_acceptance_length(speedbench):
        speedbench.measure().assert_no_regression("acceptance_length")
"""


def test_an_unchanged_engine_passes(saved: Run) -> None:
    result = saved()
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*qualitative-coding-bs2*pass +0.0 %*"])


def test_a_weaker_drafter_is_a_regression_of_acceptance_length(saved: Run) -> None:
    result = saved("--speedbench-engine-arg=--draft-quality=0.8")
    result.assert_outcomes(failed=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "qualitative / coding / batch size 2: acceptance_length -* %, drafter",
            "reference, draft_model k=3",
            "  acceptance_length * -> * -* %  [[]95 % CI -* .. -*]",
            "*REGRESSION (tolerance -3 %)",
            "  cause: drafter. Acceptance length *",
            "  accepted less often at position 1: 0.* -> 0.*",
            "  differs from the baseline: engine_args none -> --draft-quality=0.8",
            "  8 of 8 prompts paired with baselines/reference-draft_model-k3.yaml",
            "  engine log: .speedbench/logs/reference-*.log",
            "  if this is intended, store it as the new baseline:",
            "    pytest *--speedbench-save",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_slower_steps_are_a_regression_of_throughput_alone(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(test_gate=THROUGHPUT)
    longer = "--speedbench-output-length=128"
    assert run(longer, "--speedbench-save").ret == 0
    result = run(longer, "--speedbench-engine-arg=--step-slowdown=1.5")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            "throughput_1k / mixed / batch size 4: *_tps -* %, system",
            "  output_tps * -> * -* %  [[]95 % CI -* .. -*]",
            "*REGRESSION (tolerance -10 %)",
            "  cause: system. *",
        ]
    )


def test_a_cell_without_a_baseline_fails_and_says_how_to_store_one(run: Run) -> None:
    result = run()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "*NO-BASELINE: no baseline is stored for this target",
            "  to store this run as the baseline:",
            "    pytest * --speedbench-save",
        ]
    )


def test_a_better_drafter_is_an_improvement_and_the_baseline_is_called_stale(run: Run) -> None:
    assert run("--speedbench-save", "--speedbench-engine-arg=--draft-quality=0.8").ret == 0
    result = run()
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*IMPROVEMENT (by more than 3 %): the baseline is stale"])


def test_other_prompts_are_incomparable(pytester: pytest.Pytester, saved: Run) -> None:
    path = pytester.path / BASELINE
    path.write_text(re.sub(r"digest: \S{16}", "digest: 0123456789abcdef", path.read_text()))
    result = saved()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        ["*INCOMPARABLE: only 0 of 8 prompts are those of the", "*baseline: 8 changed text"]
    )


def test_another_output_length_is_incomparable(saved: Run) -> None:
    result = saved("--speedbench-output-length=16")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*INCOMPARABLE: output_length 32 -> 16*"])


def test_throughput_of_other_hardware_skips_and_acceptance_length_does_not(
    pytester: pytest.Pytester, run: Run
) -> None:
    pytester.makepyfile(test_gate=THROUGHPUT)
    assert run("--speedbench-save").ret == 0
    path = pytester.path / BASELINE
    path.write_text(path.read_text().replace("modelled accelerator x 1", "NVIDIA H100 80GB HBM3 x 8"))
    result = run("-rs")
    result.assert_outcomes(skipped=1, passed=1)
    result.stdout.fnmatch_lines(
        ["SKIPPED*stored for NVIDIA H100 80GB HBM3 x 8, and this is modelled accelerator x 1"]
    )


def test_a_loss_too_noisy_to_be_sure_of_warns_or_fails(pytester: pytest.Pytester, saved: Run) -> None:
    """One prompt of eight lost much, the others nothing: below the tolerance, and no surer than that."""
    path = pytester.path / BASELINE
    text, changed = [], 0
    for line in path.read_text().splitlines():
        if line.lstrip().startswith('- {id: "sample-qa-01"') and "steps: " in line:
            steps = line[line.index("steps: ") + 7 :].split(",", 1)[0]
            line = line.replace(f"steps: {steps}", f"steps: {int(steps) // 2}")
            changed += 1
        text.append(line)
    assert changed
    path.write_text("\n".join(text) + "\n")
    result = saved("--speedbench-category=qa")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*INCONCLUSIVE (tolerance -3 %)*"])
    saved("--speedbench-category=qa", "--speedbench-inconclusive=fail").assert_outcomes(failed=1)


def test_tolerance_is_the_loss_one_accepts(saved: Run) -> None:
    weaker = "--speedbench-engine-arg=--draft-quality=0.8"
    saved(weaker).assert_outcomes(failed=2)
    saved(weaker, "--speedbench-tolerance=acceptance_length=0.5").assert_outcomes(passed=2)
