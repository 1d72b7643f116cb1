"""Targets of the real engines on this CPU: one factory each, over the tiny models of an installed environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest

from pytest_speedbench.settings.target import Target
from tests.real.install import Environment, environment

DRAFT_LENGTH = 3
BATCH_SIZE = 8
"""The largest that any of them is sent."""
LOOKUP = (2, 4)
"""Fewest and most tokens of an n-gram: fewer than vLLM's default of 5, for more drafts, and more that fail."""
_ARGUMENTS = {
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
        f"--parallel={BATCH_SIZE}",
        "--ctx-size=131072",
        "--cache-type-k=f32",
        "--cache-type-v=f32",
        "--flash-attn=off",
    ),
}
_LLAMACPP_DRAFTER = ("--spec-draft-threads=1", "--spec-draft-type-k=f32", "--spec-draft-type-v=f32")
_ENVIRONMENTS = {"vllm": "vllm-cpu", "sglang": "sglang-cpu", "llamacpp": "llamacpp"}


@cache
def installed(engine: str) -> Environment:
    """The environment of an engine, installed if it is not there yet."""
    return environment(_ENVIRONMENTS[engine])


def target(
    engine: str, method: str, *more: str, model: str = "target", draft_model: str | None = None
) -> Target:
    """A target that computes in float32, so that a batch rounds as its requests do alone (but on llama.cpp).

    Args:
        engine: `vllm`, `sglang` or `llamacpp`.
        method: how it drafts.
        more: further launch arguments.
        model: name of one of the tiny models.
        draft_model: that of another one; for method `draft_model`, `draft` unless named.
    """
    there = installed(engine)
    suffix = ""
    if method == "draft_model":
        draft_model = draft_model or "draft"
    if engine == "llamacpp":
        suffix = ".gguf"
        more = (*_LLAMACPP_DRAFTER, *more) if draft_model else more
    return Target(
        name=f"{engine}-{method}",
        engine=engine,
        method=method,
        draft_length=DRAFT_LENGTH if method != "none" else 0,
        model=str(there.models / f"{model}{suffix}"),
        draft_model=str(there.models / f"{draft_model}{suffix}") if draft_model else None,
        engine_args=(*_ARGUMENTS[engine], *more),
        engine_python=str(there.python),
    )


def prompt_lookup(fewest: int, most: int) -> Target:
    """vLLM's n-gram drafter.

    Args:
        fewest: tokens of the shortest n-gram that it looks up.
        most: of the longest, which it looks up first.
    """
    lengths = (f"--speculative-config.prompt_lookup_{end}={n}" for end, n in (("min", fewest), ("max", most)))
    return target("vllm", "ngram", *lengths)


@contextmanager
def variables(engine: str) -> Iterator[None]:
    """What the engine's processes need in the environment of the one that starts them, while in here."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in installed(engine).variables.items():
            monkeypatch.setenv(name, value, prepend=os.pathsep if name == "PYTHONPATH" else None)
        yield
