"""`--speedbench-save` writes what was measured, and keeps what was not."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_speedbench.gate.store import load
from tests.integration.conftest import Run

BASELINE = Path("baselines", "reference-draft_model-k3.yaml")


def cells(pytester: pytest.Pytester) -> set[str]:
    baseline = load(pytester.path / BASELINE)
    assert baseline is not None
    (on_this_hardware,) = baseline.acceptance.values()
    return set(on_this_hardware)


def test_it_says_what_it_saved(pytester: pytest.Pytester, run: Run) -> None:
    result = run("--speedbench-save")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        [
            "speedbench: baselines: baselines/reference-draft_model-k3.yaml (not there yet), to be saved",
            "qualitative-coding-bs2 * measured",
            "saved 2 cells to baselines/reference-draft_model-k3.yaml; look at the change before you commit it",
        ]
    )
    assert cells(pytester) == {"qualitative-coding-bs2", "qualitative-qa-bs2"}


def test_cells_that_were_not_measured_are_kept(pytester: pytest.Pytester, saved: Run) -> None:
    before = (pytester.path / BASELINE).read_text()
    result = saved("--speedbench-save", "--speedbench-category=qa", "--speedbench-output-length=16")
    result.stdout.fnmatch_lines(["saved 1 cell to *"])
    assert cells(pytester) == {"qualitative-coding-bs2", "qualitative-qa-bs2"}
    saved("-k", "coding").assert_outcomes(passed=1)
    assert (pytester.path / BASELINE).read_text() != before


def test_a_regression_can_be_saved_on_purpose(saved: Run) -> None:
    weaker = "--speedbench-engine-arg=--draft-quality=0.8"
    saved(weaker).assert_outcomes(failed=3)
    saved(weaker, "--speedbench-save").assert_outcomes(passed=3)
    saved(weaker).assert_outcomes(passed=3)


def test_nothing_is_written_without_it(pytester: pytest.Pytester, run: Run) -> None:
    run().assert_outcomes(failed=3)
    assert not (pytester.path / "baselines").exists()


def test_nothing_is_written_while_only_collecting(pytester: pytest.Pytester, run: Run) -> None:
    assert run("--speedbench-save", "--collect-only").ret == 0
    assert not (pytester.path / "baselines").exists()


def test_any_failed_gate_keeps_the_file_as_it_is(pytester: pytest.Pytester, run: Run) -> None:
    """Also a failure that has nothing to do with a baseline: whoever saves has to see a clean run."""
    pytester.makepyfile(
        test_gate="""
        import pytest

        @pytest.mark.speedbench(split="qualitative", categories=["qa"], batch_sizes=[2])
        def test_it(speedbench):
            speedbench.measure().assert_no_regression("acceptance_length")
            assert speedbench.measure().metric("acceptance_length") > 3.9
    """
    )
    result = run("--speedbench-save")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["nothing was saved to *: 1 gated test failed"])
    assert not (pytester.path / BASELINE).exists()


def test_another_folder(pytester: pytest.Pytester, run: Run) -> None:
    run("--speedbench-save", "--speedbench-baselines=kept/here").assert_outcomes(passed=3)
    assert (pytester.path / "kept" / "here" / BASELINE.name).exists()
    run("--speedbench-baselines=kept/here").assert_outcomes(passed=3)


def test_saving_a_mean_saves_its_categories(pytester: pytest.Pytester, run: Run) -> None:
    run("--speedbench-save", "-k", "mean").assert_outcomes(passed=1)
    assert cells(pytester) == {"qualitative-coding-bs2", "qualitative-qa-bs2"}
