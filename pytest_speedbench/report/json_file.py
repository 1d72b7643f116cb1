"""The results for machines: one JSON document, described by `results.schema.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_speedbench.catalogue import UNITS
from pytest_speedbench.files import write_whole
from pytest_speedbench.report.sensitivity_text import power
from pytest_speedbench.report.terminal import notices

if TYPE_CHECKING:
    from pytest_speedbench.run.ledger import CellRun
    from pytest_speedbench.run.results import RunResult

SCHEMA = Path(__file__).with_name("results.schema.json")
SCHEMA_VERSION = 1


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
        "target": {**asdict(result.target), "engine_args": list(result.target.engine_args)},
        "against": result.against,
        "conditions": {**asdict(result.conditions), "engine_args": list(result.conditions.engine_args)},
        "hardware": None
        if result.hardware is None
        else {**asdict(result.hardware), "key": result.hardware.key},
        "units": dict(UNITS),
        "warnings": list(result.warnings),
        "notices": notices(result),
        "messages": list(result.messages),
        "patterns": [_plain(pattern) for pattern in result.patterns],
        "break_evens": [_plain(each) for each in result.break_evens],
        "pareto_curves": [_plain(curve) for curve in result.pareto_curves],
        "detectable_losses": [_plain(each) for each in found],
        "blind_checks": [_plain(each) for each in weak],
        "cells": [_cell(cell) for cell in result.cells],
    }


def _cell(cell: CellRun) -> dict[str, Any]:
    measurement = cell.measurement
    head = {
        **asdict(cell.cell),
        "id": cell.cell.id,
        "error": cell.error,
        "refused": cell.refused,
        "failures": dict(cell.failures),
        "measuring_s": cell.measuring_s,
    }
    if measurement is None:
        return head
    return {
        **head,
        "metrics": dict(cell.metrics),
        "missing": dict(measurement.missing),
        "random_control": measurement.random_control,
        "per_position": {name: list(values) for name, values in measurement.per_position.items()},
        "rounds": [_plain(figures) for figures in measurement.rounds],
        "requests": {
            "sent": measurement.sent,
            "finished": measurement.finished,
            "failed": measurement.failed,
        },
        "prompt_tokens": measurement.prompt_tokens,
        "tokenization": measurement.tokenization,
        "counter_source": measurement.counter_source,
        "problems": list(measurement.problems),
        "notes": list(measurement.notes),
        "prompts": [_plain(tally) for tally in measurement.prompts],
        "verdicts": {check.metric: _plain(check.plain()) for check in cell.checks},
        "cause": None if cell.cause is None else _plain(cell.cause),
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
