"""A gated repository to run pytest in: one test file, two cells of the reference engine."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module

import aiohttp  # noqa: F401
import jsonschema  # noqa: F401
import numpy  # noqa: F401
import psutil  # noqa: F401
import pytest
import requests  # noqa: F401
import scipy.special  # noqa: F401
import yaml  # noqa: F401

import pytest_speedbench

# pytester forgets what a run was the first to import: C extensions do not bear a second import, and our own
# modules would meet the classes of their former selves
for found in pkgutil.walk_packages(pytest_speedbench.__path__, "pytest_speedbench."):
    if not found.name.endswith(".__main__") and ".suite." not in found.name:
        import_module(found.name)

GATE = """
    import pytest

    @pytest.mark.speedbench(split="qualitative", categories=["coding", "qa"], batch_sizes=[2])
    def test_acceptance_length(speedbench):
        speedbench.measure().assert_no_regression("acceptance_length")
"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def gate(pytester: pytest.Pytester) -> str:
    """A test file that gates acceptance length in two cells."""
    pytester.makepyfile(test_gate=GATE)
    return "test_gate.py"


@pytest.fixture
def run(pytester: pytest.Pytester, gate: str) -> Run:
    """Runs pytest on the gate with the reference engine, 32 output tokens, one round; more arguments may follow."""

    def run(*arguments: str) -> pytest.RunResult:
        return pytester.runpytest(
            "-p",
            "no:cacheprovider",
            "--speedbench-engine=reference",
            "--speedbench-output-length=32",
            "--speedbench-ignore-eos",
            "--speedbench-rounds=1",
            "--speedbench-max-rounds=1",
            *arguments,
        )

    return run


@pytest.fixture
def saved(run: Run) -> Run:
    """As `run`, with a baseline that was saved by the engine as shipped."""
    result = run("--speedbench-save")
    assert result.ret == 0, result.stdout.str()
    return run
