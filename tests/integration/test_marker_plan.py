"""What a marker asks of its cells holds for these cells, whatever the run's options say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.conftest import Run

TEST = """
    import pytest

    @pytest.mark.speedbench(split="qualitative", categories=["coding", "math", "qa"], batch_sizes=[2], {plan})
    def test_it(speedbench):
        speedbench.measure().assert_no_regression("acceptance_length")
"""


@pytest.fixture
def measured(pytester: pytest.Pytester, run: Run) -> Any:
    """Runs a test with a plan; the cells of its results by category."""

    def measured(plan: str, *arguments: str) -> dict[str, Any]:
        pytester.makepyfile(test_gate=TEST.format(plan=plan))
        run("--speedbench-json=results.json", *arguments)
        document = json.loads((pytester.path / "results.json").read_text())
        return {cell["category"]: cell for cell in document["cells"]}

    return measured


def test_rounds_limit_and_output_length(measured: Any) -> None:
    cells = measured("rounds=2, limit=3, output_length=12", "--speedbench-limit=5", "--speedbench-save")
    for category in ("coding", "math", "qa"):
        assert len(cells[category]["rounds"]) == 2
        assert len(cells[category]["prompts"]) == 3
        assert {prompt["output_tokens"] % 12 for prompt in cells[category]["prompts"]} == {0}


def test_the_output_length_of_a_cell_is_stored_with_it(measured: Any) -> None:
    measured("output_length=12", "--speedbench-save")
    assert measured("output_length=12")["qa"]["verdicts"]["acceptance_length"]["verdict"] == "pass"
    verdict = measured("output_length=16")["qa"]["verdicts"]["acceptance_length"]
    assert verdict["verdict"] == "incomparable"
    assert verdict["reasons"] == ["output_length 12 -> 16: another quantity"]


def test_tolerance(measured: Any) -> None:
    weaker = "--speedbench-engine-arg=--draft-quality=0.8"
    measured("speedup=False", "--speedbench-save")
    assert (
        measured("tolerance=0.03", weaker)["mean"]["verdicts"]["acceptance_length"]["verdict"] == "regression"
    )
    cells = measured("tolerance=0.5", weaker)
    assert {cell["verdicts"]["acceptance_length"]["verdict"] for cell in cells.values()} == {"pass"}
    assert cells["qa"]["verdicts"]["acceptance_length"]["tolerance"] == 0.5


def test_alpha_is_shared_among_the_metrics_that_are_named(measured: Any) -> None:
    measured("speedup=False", "--speedbench-save")
    every = measured("speedup=False")["qa"]["verdicts"]["acceptance_length"]["alpha"]
    one = measured("metrics=['acceptance_length']")["qa"]["verdicts"]["acceptance_length"]["alpha"]
    assert one == pytest.approx(3 * every)


def test_a_category_that_is_known_to_be_bad_is_left_out_of_the_mean(measured: Any) -> None:
    measured("speedup=False", "--speedbench-save")
    cells = measured("exclude_from_mean=['qa']")
    mean = cells["mean"]["metrics"]["acceptance_length"]
    kept = [cells[category]["metrics"]["acceptance_length"] for category in ("coding", "math")]
    assert mean == pytest.approx(sum(kept) / 2)
    assert cells["mean"]["verdicts"]["acceptance_length"]["value"] == pytest.approx(sum(kept) / 2)
    assert cells["qa"]["verdicts"]["acceptance_length"]["verdict"] == "pass", "it is gated by itself"
