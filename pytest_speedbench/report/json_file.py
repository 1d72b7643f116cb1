"""The results for machines: one JSON document, described by `results.schema.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_speedbench.catalogue import METRICS
from pytest_speedbench.engines.launch.environment import MASK, is_secret
from pytest_speedbench.engines.launch.log import mask
from pytest_speedbench.files import write_whole
from pytest_speedbench.metrics.measurement import Measurement
from pytest_speedbench.report.by_cause import headline
from pytest_speedbench.report.sensitivity_text import power
from pytest_speedbench.report.terminal import notices

if TYPE_CHECKING:
    from pytest_speedbench.run.ledger import CellRun, Side
    from pytest_speedbench.run.results import RunResult

SCHEMA = Path(__file__).with_name("results.schema.json")
SCHEMA_VERSION = 2


def write(path: Path, result: RunResult) -> None:
    """Write a run's results.

    Args:
        path: replaced as a whole; its folder is made.
        result: of the run.

    Raises:
        OSError: the file cannot be written.
    """
    write_whole(path, json.dumps(document(result), indent=1, allow_nan=False) + "\n")


def document(result: RunResult) -> dict[str, Any]:
    """The document, as plain JSON data."""
    found, weak = power(result.cells)
    return {
        "schema_version": SCHEMA_VERSION,
        "headline": headline(result),
        "verdict_counts": dict(result.verdicts),
        "failed_tests": list(result.failed_tests),
        "not_measured_tests": list(result.not_measured_tests),
        "not_made": list(result.not_made),
        "saving": result.saving,
        "target": _masked(asdict(result.target)),
        "against": result.against,
        "compared_with": result.compared_with,
        "conditions": _masked(asdict(result.conditions)),
        "hardware": None
        if result.hardware is None
        else {**asdict(result.hardware), "key": result.hardware.key},
        "provenance": _plain(result.provenance),
        "measuring_s": result.measuring_s,
        "metrics": {
            metric.name: {
                "unit": metric.unit,
                "label": metric.label,
                "kind": metric.kind,
                "higher_is_better": metric.higher_is_better,
                "gated": metric.gated,
            }
            for metric in METRICS.values()
        },
        "warnings": list(result.warnings),
        "notices": notices(result),
        "messages": list(result.messages),
        "log": result.log,
        "failures": dict(result.failures),
        "patterns": _plain(result.patterns),
        "break_evens": _plain(result.break_evens),
        "pareto_curves": _plain(result.pareto_curves),
        "sensitivities": _plain(found),
        "underpowered_checks": _plain(weak),
        "cells": [_cell(cell) for cell in result.cells],
    }


def _cell(cell: CellRun) -> dict[str, Any]:
    """All that is known of a cell. What was not measured is there too, empty."""
    known = cell.measurement or Measurement(
        cell.cell, {}, (), {}, (), sent=0, finished=0, failed=0, missing={}
    )
    return {
        **asdict(cell.cell),
        "id": cell.cell.id,
        "verdict": None if cell.verdict is None else cell.verdict.value,
        "error": cell.error,
        "refused": cell.refused,
        "asked_by": list(cell.asked_by),
        "failures": dict(cell.failures),
        "measuring_s": cell.measuring_s,
        "sides": {role.value: _side(side) for role, side in cell.sides.items()},
        "metrics": dict(cell.metrics),
        "estimated": known.estimated,
        "missing": dict(known.missing),
        "random_control": _plain(known.random_control),
        "per_position": _plain(known.per_position),
        "rounds": _plain(known.rounds),
        "requests": {"sent": known.sent, "finished": known.finished, "failed": known.failed},
        "prompt_tokens": known.prompt_tokens,
        "tokenization": known.tokenization,
        "counter_source": known.counter_source,
        "overload": known.overload,
        "problems": list(known.problems),
        "notes": list(known.notes),
        "prompts": _plain(known.prompts),
        "verdicts": {check.metric: _plain(check.plain()) for check in cell.checks},
        "cause": _plain(cell.cause),
        "pattern": _plain(cell.pattern),
    }


def _side(side: Side) -> dict[str, Any]:
    return {
        "target": side.target,
        "method": side.method.name,
        "rounds": len(side.rounds),
        "remeasured_rounds": side.remeasured,
        "measuring_s": side.measuring_s,
        "error": side.error,
    }


def _masked(data: Mapping[str, Any]) -> dict[str, Any]:
    """A target or its conditions, fit to be passed on: values of secret arguments and variables masked."""
    return {
        **data,
        "engine_args": mask(data["engine_args"])[0],
        "environment": {
            name: MASK if is_secret(name) else value for name, value in data["environment"].items()
        },
    }


def _plain(data: Any) -> Any:
    """A dataclass as JSON has it: objects and lists, and the names of fields."""
    if is_dataclass(data):
        return {item.name: _plain(getattr(data, item.name)) for item in fields(data)}
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, tuple):
        return [_plain(value) for value in data]
    return data
