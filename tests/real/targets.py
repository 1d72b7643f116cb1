"""Targets of the real engines on this CPU: one factory each, over the tiny models of an installed environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pytest_speedbench.settings import Target
from tests.real.install import Environment, environment

DRAFT_LENGTH = 3
ARGUMENTS = {
    # compilation would take longer than the tests do
    "vllm": ("--enforce-eager", "--max-model-len=16384", "--dtype=float32"),
    "sglang": (
        "--device=cpu",
        # both, for one name for the two would be replaced by a backend that cannot verify drafts
        "--prefill-attention-backend=intel_amx",
        "--decode-attention-backend=intel_amx",
        "--dtype=float32",
        "--mem-fraction-static=0.3",
        "--context-length=4096",
        "--max-total-tokens=32768",
        "--cuda-graph-backend-decode=disabled",
        "--cuda-graph-backend-prefill=disabled",
        "--speculative-ngram-capacity=100000",
        "--skip-server-warmup",
        "--sleep-on-idle",
    ),
    "llamacpp": (
        "--threads=1",  # they wait for each other in loops, which takes for ever on a busy machine
        "--parallel=8",
        "--ctx-size=65536",
        "--cache-type-k=f32",
        "--cache-type-v=f32",
        "--flash-attn=off",
    ),
}
_ENVIRONMENTS = {"vllm": "vllm-cpu", "sglang": "sglang-cpu", "llamacpp": "llamacpp"}
_VARIABLES = {
    # threads bound to every core wait for one another, ten times as long as one thread takes, on a busy machine
    "vllm": {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"},
}


def installed(engine: str) -> Environment:
    """The environment of an engine, installed if it is not there yet."""
    return environment(_ENVIRONMENTS[engine])


def target(engine: str, method: str, *more: str, draft_model: str = "draft") -> Target:
    """A target that computes in float32.

    Args:
        engine: `vllm`, `sglang` or `llamacpp`.
        method: `draft_model` drafts with the tiny model `draft_model`.
        more: further launch arguments.
        draft_model: name of one of the tiny models.
    """
    there = installed(engine)
    with_model = method == "draft_model"
    if engine == "llamacpp" and with_model:
        more = ("--spec-draft-threads=1", "--spec-draft-type-k=f32", "--spec-draft-type-v=f32", *more)
    suffix = ".gguf" if engine == "llamacpp" else ""
    return Target(
        name=f"{engine}-{method}",
        engine=engine,
        method=method,
        draft_length=DRAFT_LENGTH,
        model=str(there.models / f"target{suffix}"),
        draft_model=str(there.models / f"{draft_model}{suffix}") if with_model else None,
        engine_args=(*ARGUMENTS[engine], *more),
        engine_python=str(there.python),
    )


@contextmanager
def variables(engine: str) -> Iterator[None]:
    """What the engine's processes need in the environment of the one that starts them, while in here."""
    needed = {**installed(engine).variables, **_VARIABLES.get(engine, {})}
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in needed.items():
            monkeypatch.setenv(name, value, prepend=os.pathsep if name == "PYTHONPATH" else None)
        yield
