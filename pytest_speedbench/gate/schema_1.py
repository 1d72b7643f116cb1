"""Baseline files of schema_version 1, as they were before acceptance was filed by hardware: read, and never written."""

from __future__ import annotations

from typing import Any

from pytest_speedbench.errors import BaselineError

UNKNOWN_HARDWARE = "unknown"
"""Hardware key of acceptance that was stored with no throughput beside it."""


def converted(document: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A document of schema_version 1 as one of schema_version 2, and its file of prompts.

    Acceptance was stored once for all hardware. It is filed under the hardware whose throughput the same run stored, and
    under `unknown` where there is none: a run on any hardware is then compared with it as with acceptance of other
    hardware.

    Args:
        document: what was read from YAML.

    Raises:
        BaselineError: it does not hold what a file of schema_version 1 holds.
    """
    try:
        return _converted(document)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        missing = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise BaselineError(f"not a baseline of schema_version 1: {missing}") from None


def _converted(document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    cells: dict[str, Any] = {}
    acceptance: dict[str, Any] = {}
    throughput: dict[str, Any] = {}
    for key, entry in document["acceptance"].items():
        hardware = next(
            (
                hardware
                for hardware, measured in document["throughput"].items()
                if measured.get(key, {}).get("run") == entry["run"]
            ),
            UNKNOWN_HARDWARE,
        )
        acceptance.setdefault(hardware, {})[key] = {
            "session": entry["run"],
            "metrics": _present(entry, "acceptance_length", "drafted_acceptance_length"),
            "conditional_acceptance_rate": entry.get("conditional_acceptance_rate", []),
            "prompts": len(entry["prompts"]),
            "prompt_tokens": entry["prompt_tokens"],
            "rounds": {"acceptance_length": entry["round_acceptance_length"]},
        }
        cells.setdefault(hardware, {}).setdefault(key, {})[entry["run"]] = _rows(entry["prompts"])
    for hardware, measured in document["throughput"].items():
        for key, entry in measured.items():
            metrics = _present(entry, "output_tps", "user_tps", "step_latency_s", "speedup")
            if "step_latency_s" in metrics:
                metrics["step_latency_s_mean"] = metrics.pop("step_latency_s")
            names = dict.fromkeys(name for figures in entry["rounds"] for name in figures)
            throughput.setdefault(hardware, {})[key] = {
                "session": entry["run"],
                "metrics": metrics,
                "rounds": {name: [figures.get(name) for figures in entry["rounds"]] for name in names},
            }
            of_cell = cells.setdefault(hardware, {}).setdefault(key, {})
            of_cell.setdefault(entry["run"], _rows(entry["prompts"]))
    columns = ["id", "digest", "requests", "tokens", "steps", "drafted", "accepted", "steps_exact"]
    new = {
        "schema_version": 2,
        "target": document["target"],
        "prompts_sha256": "0" * 64,
        "sessions": document["runs"],
        "acceptance": acceptance,
        "throughput": throughput,
    }
    return new, {"columns": columns, "cells": cells}


def _present(entry: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: entry[name] for name in names if entry.get(name) is not None}


def _rows(prompts: list[dict[str, Any]]) -> list[list[Any]]:
    """In either half; that of throughput knows no steps."""
    return [
        [
            *(prompt[name] for name in ("id", "digest", "requests", "tokens")),
            *(prompt.get(name) for name in ("steps", "drafted", "accepted")),
            True,
        ]
        for prompt in sorted(prompts, key=lambda prompt: str(prompt["id"]))
    ]
