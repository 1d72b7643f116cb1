"""`--speedbench-random-control` measures random tokens beside real prompts, and judges nothing by them."""

from __future__ import annotations

import json

import pytest
from jsonschema import Draft202012Validator

from pytest_speedbench.report.json_file import SCHEMA
from tests.integration.conftest import Run

GATE = """
    import pytest

    @pytest.mark.speedbench(split=["qualitative", "throughput_1k"], categories=["qa", "mixed"], batch_sizes=[2])
    def test_it(speedbench):
        speedbench.measure().metric("output_tps")
"""


def test_it_tells_how_far_random_tokens_mislead(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(test_gate=GATE)
    result = run("--speedbench-random-control", "--speedbench-json=results.json")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "throughput_1k-mixed-bs2: random tokens in place of these prompts give output",
            "  TPS * % and acceptance length * % (not judged)",
        ]
    )
    document = json.loads((pytester.path / "results.json").read_text())
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)
    controls = {cell["id"]: cell["random_control"] for cell in document["cells"]}
    assert controls["qualitative-qa-bs2"] is None, "turns follow replies there"
    assert set(controls["throughput_1k-mixed-bs2"]) == {"output_tps", "acceptance_length"}


def test_without_it_nothing_is_said(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(test_gate=GATE)
    run().stdout.no_fnmatch_line("*random tokens*")
