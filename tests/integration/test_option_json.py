"""`--speedbench-json` writes everything for machines."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest
from jsonschema import Draft202012Validator

from pytest_speedbench.report.json_file import SCHEMA
from tests.integration.conftest import Run


def test_the_document_fits_its_schema_and_holds_every_cell(pytester: pytest.Pytester, saved: Run) -> None:
    saved("--speedbench-json=out/results.json", "--speedbench-engine-arg=--draft-quality=0.8")
    document = json.loads((pytester.path / "out" / "results.json").read_text())
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)
    assert [cell["id"] for cell in document["cells"]] == [
        f"qualitative-{category}-bs2" for category in ("coding", "qa", "mean")
    ]
    cell = document["cells"][0]
    verdict = cell["verdicts"]["acceptance_length"]
    assert verdict["verdict"] == "regression"
    assert verdict["ci_low"] < verdict["ratio"] < verdict["ci_high"] < 1
    assert verdict["value"] == pytest.approx(cell["metrics"]["acceptance_length"])
    assert cell["cause"]["word"] == "drafter"
    assert cell["requests"] == {"sent": 11, "finished": 11, "failed": 0}
    assert set(cell["metrics"]) <= set(document["metrics"])
    assert cell["metrics"]["ttft_s_p95"] > 0
    assert cell["measuring_s"] == cell["sides"]["main"]["measuring_s"] > 0
    assert len(document["cells"][2]["rounds"]) == 1, "of the mean"
    assert document["provenance"]["machine"]["cpus"] > 0
    assert document["failed_tests"] == [test for each in document["cells"] for test in each["failures"]]
    assert document["not_measured_tests"] == []
    assert document["headline"].startswith("REGRESSION: acceptance_length fell in 2 of 2 categories")
    assert document["conditions"]["dataset"] == "sample"
    assert document["target"]["engine_args"] == ["--draft-quality=0.8"]


def test_an_invalid_cell_is_in_it_too(pytester: pytest.Pytester, run: Run) -> None:
    run("--speedbench-json=results.json", "--speedbench-engine-arg=--fault=no-counters")
    document = json.loads((pytester.path / "results.json").read_text())
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)
    cell = document["cells"][0]
    assert cell["problems"]
    assert cell["verdicts"]["acceptance_length"]["verdict"] == "invalid"
    assert "acceptance_length" in cell["missing"]


def test_a_path_that_cannot_be_written_fails_the_run(pytester: pytest.Pytester, saved: Run) -> None:
    (pytester.path / "folder").mkdir()
    result = saved("--speedbench-json=folder")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*folder could not be written: Is a directory"])


def test_values_reach_junit_xml(pytester: pytest.Pytester, saved: Run) -> None:
    saved("--junit-xml=junit.xml", "--speedbench-engine-arg=--draft-quality=0.8", "-k", "coding")
    properties = {
        item.attrib["name"]: item.attrib["value"]
        for item in ElementTree.parse(pytester.path / "junit.xml").iter("property")
    }
    name = "speedbench_acceptance_length"
    assert 1 < float(properties[name]) < float(properties[f"{name}_baseline"]) <= 4
    low, ratio, high = (float(properties[f"{name}_{suffix}"]) for suffix in ("ci_low", "ratio", "ci_high"))
    assert low < ratio < high < 1
    assert (properties[f"{name}_verdict"], properties["speedbench_cause"]) == ("regression", "drafter")
    assert float(properties["speedbench_measuring_s"]) > 0
