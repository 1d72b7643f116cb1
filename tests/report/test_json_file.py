"""The document for machines holds everything that a run found, and fits its schema."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from pytest_speedbench.cells import Plan
from pytest_speedbench.gate.check import Check, Verdict
from pytest_speedbench.metrics.measurement import RoundFigures
from pytest_speedbench.report.json_file import SCHEMA, document
from pytest_speedbench.run.ledger import CellRun, Role, Side
from pytest_speedbench.run.provenance import Provenance
from pytest_speedbench.run.results import RunResult
from pytest_speedbench.settings.methods import method_of
from tests.report.samples import (
    BREAK_EVEN,
    CODING,
    CURVE,
    DRAFTER,
    MEAN_CELL,
    PATTERN,
    SLOWER,
    TARGET,
    check,
    estimate,
    measurement,
    run,
)
from tests.run.cell_runs import cell_run

SCHEMA_CHECK = Draft202012Validator(json.loads(SCHEMA.read_text()))


def plain(result: RunResult) -> Any:
    """A document as it is read back from the file."""
    return json.loads(json.dumps(document(result), allow_nan=False))


def written(*cells: CellRun, everything: bool = False) -> Any:
    """The document of a run, with a pattern and a break-even point if `everything` is asked for."""
    result = run(*cells)
    if everything:
        result = replace(result, patterns=(PATTERN,), break_evens=(BREAK_EVEN,), pareto_curves=(CURVE,))
    return plain(result)


def test_a_whole_run() -> None:
    rounds = (RoundFigures(2349.0, 98.0, 2.81, 0.03, None), RoundFigures(2350.0, None, None, None))
    noisy = replace(SLOWER, estimate=estimate(0.933, 0.03), detectable_loss=0.17)
    result = written(
        cell_run(replace(measurement(CODING), rounds=rounds), (check(), noisy), DRAFTER, "what failed"),
        cell_run(measurement(MEAN_CELL), (check(),), pattern=PATTERN),
        everything=True,
    )
    SCHEMA_CHECK.validate(result)
    coding, mean = result["cells"]
    assert (coding["id"], mean["category"]) == ("qualitative-coding-bs32", "mean")
    assert coding["rounds"][1] == {
        "output_tps": 2350.0,
        "user_tps": None,
        "acceptance_length": None,
        "step_latency_s": None,
        "speedup": None,
        "other_processes_busy": None,
    }
    verdict = coding["verdicts"]["output_tps"]
    assert (verdict["verdict"], verdict["rounds"], verdict["baseline_rounds"]) == ("regression", 3, 9)
    assert (verdict["standard_error"], verdict["detectable_loss"]) == (0.03, 0.17)
    assert coding["cause"]["breakdown"]["acceptance_length"] == {
        "ratio": 0.937,
        "ci_low": 0.93,
        "ci_high": 0.944,
        "share": 0.94,
    }
    assert coding["cause"]["positions"][0] == {"position": 1, "baseline": 0.681, "value": 0.64}
    assert result["patterns"][0]["fallen"] == ["multilingual", "rag"]
    assert result["break_evens"][0]["speedups"] == {"16": 1.12, "64": 0.93}
    assert result["pareto_curves"][0]["points"][1] == {
        "batch_size": 8,
        "output_tps": 1303.4,
        "user_tps": 439.7,
        "on_frontier": True,
    }
    assert result["sensitivities"] == [
        {"metric": "acceptance_length", "of_means": False, "loss": 0.037},
        {"metric": "output_tps", "of_means": False, "loss": 0.17},
        {"metric": "acceptance_length", "of_means": True, "loss": 0.037},
    ]
    assert result["underpowered_checks"] == [
        {
            "cell": "qualitative-coding-bs32",
            "metric": "output_tps",
            "tolerance": 0.05,
            "detectable_loss": 0.17,
        }
    ]
    assert result["verdict_counts"] == {"regression": 3}
    assert (coding["verdict"], coding["asked_by"]) == ("regression", ["test_gate.py::test"])
    assert mean["pattern"]["kind"] == "few"


def test_a_run_that_found_nothing() -> None:
    SCHEMA_CHECK.validate(written())
    SCHEMA_CHECK.validate(written(cell_run(measurement(problems=("1 request failed",)), ())))


def test_a_cell_that_was_not_measured_is_there_with_the_reason() -> None:
    main = Side(
        CODING, "t", method_of("eagle3"), error="vllm exited with code 2", measuring_s=1.5, remeasured=2
    )
    result = written(CellRun(CODING, Plan(), {Role.MAIN: main}, failures={"test_gate.py::test": "..."}))
    SCHEMA_CHECK.validate(result)
    (cell,) = result["cells"]
    assert (cell["verdict"], cell["error"], cell["metrics"]) == ("invalid", "vllm exited with code 2", {})
    assert cell["sides"]["main"] == {
        "target": "t",
        "method": "eagle3",
        "rounds": 0,
        "remeasured_rounds": 2,
        "measuring_s": 1.5,
        "error": "vllm exited with code 2",
    }
    assert cell["measuring_s"] == 1.5


def test_it_says_where_the_run_came_from() -> None:
    where = Provenance("0123abc" * 5 + "01234", True, "main", "https://ci.example/7", {"cpus": 8})
    result = plain(replace(run(), provenance=where, failed_tests=("a", "b"), not_measured_tests=("b",)))
    SCHEMA_CHECK.validate(result)
    assert result["provenance"]["commit"] == where.commit
    assert result["provenance"]["machine"] == {"cpus": 8}
    assert (result["failed_tests"], result["not_measured_tests"]) == (["a", "b"], ["b"])


def test_it_says_which_direction_of_a_metric_is_better() -> None:
    metrics = written()["metrics"]
    assert metrics["output_tps"] == {
        "unit": "tokens/s",
        "label": "output TPS",
        "kind": "throughput",
        "higher_is_better": True,
        "gated": True,
    }
    assert metrics["ttft_s_p99"]["higher_is_better"] is False


def test_secrets_are_masked() -> None:
    target = replace(
        TARGET, engine_args=("--api-key=hunter22",), environment={"HF_TOKEN": "hunter22", "A": "1"}
    )
    result = run()
    conditions = replace(result.conditions, engine_args=target.engine_args, environment=target.environment)
    text = json.dumps(document(replace(result, target=target, conditions=conditions)))
    assert "hunter22" not in text
    assert '"A": "1"' in text


def test_a_check_that_compared_nothing() -> None:
    nothing = Check("output_tps", Verdict.NO_BASELINE, 0.05, 0.001)
    result = written(cell_run(measurement(CODING), (nothing,)))
    SCHEMA_CHECK.validate(result)
    assert result["cells"][0]["verdicts"]["output_tps"]["ratio"] is None
    assert result["underpowered_checks"] == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("cells", 0, "cause", "word"), "weather"),
        (("cells", 0, "cause", "breakdown", "rest", "ratio"), 0),
        (("cells", 0, "verdicts", "output_tps", "detectable_loss"), "2 %"),
        (("patterns", 0, "kind"), "some"),
        (("break_evens", 0, "batch_size"), "37"),
    ],
)
def test_the_schema_refuses_what_no_run_can_have_found(place: tuple[str | int, ...], value: object) -> None:
    result = written(cell_run(measurement(CODING), (SLOWER,), DRAFTER), everything=True)
    node: Any = result
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    with pytest.raises(ValidationError):
        SCHEMA_CHECK.validate(result)
