"""Gate changes to LLM inference engines on SPEED-Bench, the benchmark for speculative decoding.

The names below are public, see `docs/api.md`. Each is imported when it is first asked for: a pytest run that has the plugin
installed and does not use it imports none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_speedbench.cells import Cell
    from pytest_speedbench.data.prompts import Dataset, Prompt
    from pytest_speedbench.engines.base import (
        Counters,
        Engine,
        Generation,
        Hardware,
        HttpCall,
        Launch,
        Message,
        Reply,
    )
    from pytest_speedbench.engines.control import Control
    from pytest_speedbench.errors import (
        BaselineError,
        DataError,
        EngineError,
        SettingsError,
        SpeedBenchError,
    )
    from pytest_speedbench.fixture import DatasetLoader, MeasuredCell, SpeedBench
    from pytest_speedbench.gate.check import Check, Verdict
    from pytest_speedbench.gate.explain.cause import Cause
    from pytest_speedbench.metrics.measurement import Measurement
    from pytest_speedbench.run.ledger import CellRun
    from pytest_speedbench.run.results import RunResult
    from pytest_speedbench.run.running_engine import RunningEngine
    from pytest_speedbench.settings.methods import Method
    from pytest_speedbench.settings.target import Sampling, Target

__version__ = "0.1.0"

__all__ = [
    "BaselineError",
    "Cause",
    "Cell",
    "CellRun",
    "Check",
    "Control",
    "Counters",
    "DataError",
    "Dataset",
    "DatasetLoader",
    "Engine",
    "EngineError",
    "Generation",
    "Hardware",
    "HttpCall",
    "Launch",
    "MeasuredCell",
    "Measurement",
    "Message",
    "Method",
    "Prompt",
    "Reply",
    "RunResult",
    "RunningEngine",
    "Sampling",
    "SettingsError",
    "SpeedBench",
    "SpeedBenchError",
    "Target",
    "Verdict",
    "__version__",
]

_DEFINED_IN = {
    "cells": ("Cell",),
    "data.prompts": ("Dataset", "Prompt"),
    "engines.base": (
        "Counters",
        "Engine",
        "Generation",
        "Hardware",
        "HttpCall",
        "Launch",
        "Message",
        "Reply",
    ),
    "engines.control": ("Control",),
    "errors": (
        "BaselineError",
        "DataError",
        "EngineError",
        "SettingsError",
        "SpeedBenchError",
    ),
    "fixture": ("DatasetLoader", "MeasuredCell", "SpeedBench"),
    "gate.check": ("Check", "Verdict"),
    "gate.explain.cause": ("Cause",),
    "metrics.measurement": ("Measurement",),
    "run.ledger": ("CellRun",),
    "run.results": ("RunResult",),
    "run.running_engine": ("RunningEngine",),
    "settings.methods": ("Method",),
    "settings.target": ("Sampling", "Target"),
}


def __getattr__(name: str) -> object:
    """Import a public name from the module that defines it."""
    for module, names in _DEFINED_IN.items():
        if name in names:
            from importlib import import_module

            value: object = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
