"""docs/results.md names every key of the JSON file, and shows what the plugin writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench.cells import Plan
from pytest_speedbench.metrics.measurement import PromptTally, RoundFigures
from pytest_speedbench.report.json_file import SCHEMA, document
from pytest_speedbench.run.ledger import CellRun, Role, Side
from pytest_speedbench.run.provenance import Provenance
from pytest_speedbench.settings.methods import method_of
from tests.report.samples import CODING, DRAFTER, SLOWER, TARGET, check, measurement, run
from tests.run.diary import measured_round

PAGE = Path(__file__).parents[2] / "docs" / "results.md"
TEST = "test_gate.py::test_throughput[qualitative-coding-bs32]"


def example() -> Any:
    """A run in which a weaker drafter failed one cell."""
    checks = (check(), SLOWER)
    rounds = (measured_round(2349.0),)
    main = Side(CODING, TARGET.name, method_of("eagle3"), rounds, remeasured=1, measuring_s=41.5)
    known = CellRun(
        CODING,
        Plan(),
        {Role.MAIN: main},
        asked_by=(TEST,),
        settled={each.metric: each for each in checks},
        asserted=tuple(each.metric for each in checks),
        failing=tuple(each.metric for each in checks),
        cause=DRAFTER,
        failures={TEST: "qualitative / coding / batch size 32: output_tps -6.7 %, drafter\n..."},
    )
    known.__dict__["measurement"] = replace(
        measurement(CODING, acceptance_length=2.81, output_tps=2349.0, ttft_s_p95=0.043),
        rounds=(RoundFigures(2349.0, 98.0, 2.81, 0.0286),),
        missing={"speedup": "it was not asked for"},
        per_position={"conditional_acceptance_rate": (0.64, 0.69)},
        prompts=(PromptTally("q1", "0f3a", 1, 512, 182, 182, (117, 81)),),
        counter_source="response",
        tokenization="engine",
        prompt_tokens=8213,
    )
    where = Provenance(
        "9b3f0c1d2e4a5b6c7d8e9f00112233445566778a",
        dirty=False,
        branch="faster-draft",
        ci_url="https://github.com/example/engine/actions/runs/812",
        machine={
            "system": "Linux",
            "release": "6.8.0",
            "architecture": "x86_64",
            "cpus": 64,
            "python": "3.12.4",
        },
    )
    result = run(
        known, provenance=where, log=".speedbench/logs/vllm-1.log", failed_tests=(TEST,), measuring_s=41.5
    )
    return json.loads(json.dumps(document(result)))


def keys_of(schema: Any, definitions: Any) -> Iterator[str]:
    """Every name of a property, wherever it is."""
    if isinstance(schema, dict):
        for name, value in schema.get("properties", {}).items():
            yield name
            yield from keys_of(value, definitions)
        for name, value in schema.items():
            if name != "properties":
                yield from keys_of(value, definitions)
    elif isinstance(schema, list):
        for each in schema:
            yield from keys_of(each, definitions)


def is_part_of(part: Any, whole: Any) -> bool:
    """Whether all that is shown is there; of objects keys may be left out."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            name in whole and is_part_of(value, whole[name]) for name, value in part.items()
        )
    if isinstance(part, list):
        return len(part) == len(whole) and all(map(is_part_of, part, whole))
    return bool(part == whole)


def test_every_key_is_described() -> None:
    schema = json.loads(SCHEMA.read_text())
    described = set(re.findall(r"`(\w+)`", PAGE.read_text("utf-8")))
    assert set(keys_of(schema, schema["$defs"])) - described == set()


def test_the_example_is_what_a_run_writes() -> None:
    (text,) = re.findall(r"^```json\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    shown = json.loads(text)
    assert len(shown) > 10
    assert is_part_of(shown, example())


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"c": 1}, {"a": 1}, False),
        ([{"a": 1}], [{"a": 1, "b": 2}], True),
        ([1], [1, 2], False),
    ],
)
def test_what_is_left_out_is_no_difference_and_all_else_is(part: Any, whole: Any, expected: bool) -> None:
    assert is_part_of(part, whole) is expected
