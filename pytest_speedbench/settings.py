"""One frozen object out of the command line, `speedbench.yaml` and ini; says where each value came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

METHODS = ("none", "ngram", "suffix", "draft_model", "eagle", "eagle3", "mtp", "dflash")


@dataclass(frozen=True)
class Target:
    """An engine + model + speculative config + launch arguments: what a baseline is about."""

    name: str
    """Names the baseline file."""
    engine: str
    method: str
    draft_length: int
    """Tokens drafted per step (k); 0 for method `none`."""
    model: str | None = None
    draft_model: str | None = None
    engine_args: tuple[str, ...] = ()
    """Further launch arguments, as given."""
    engine_python: str | None = None
    """Interpreter that has the engine installed; None for the one that runs pytest."""
    engine_timeout_s: float = 600.0
    url: str | None = None
    """A server that already runs, to be measured and left running; None to launch one."""


@dataclass(frozen=True)
class Settings:
    """Everything a run was told."""

    target: Target
    sources: Mapping[str, str]
    baselines: Path
