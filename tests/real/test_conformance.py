"""Real engines pass the suite that every engine passes.

tox -e vllm-cpu, sglang-cpu, llamacpp
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_speedbench.settings.target import Target
from tests.engines.conformance import Conformance
from tests.real.targets import target, variables


class RealEngine(Conformance):
    engine: str
    method = "draft_model"

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def set_variables(cls) -> Iterator[None]:
        with variables(cls.engine):
            yield

    @classmethod
    def target(cls) -> Target:
        return target(cls.engine, cls.method)

    @classmethod
    def broken(cls, folder: Path) -> Target:
        (folder / "config.json").write_text("{}")
        return replace(cls.target(), model=str(folder))


class TestVllm(RealEngine):
    engine = "vllm"


class TestSglang(RealEngine):
    """With the method that remembers; what it remembers of requests beside it depends on who is faster."""

    engine = "sglang"
    method = "ngram"
    batch_size = 1


class TestLlamaCpp(RealEngine):
    """One by one, for its rounding depends on which requests share a batch."""

    engine = "llamacpp"
    batch_size = 1

    @classmethod
    def broken(cls, folder: Path) -> Target:
        spoilt = folder / "spoilt.gguf"
        spoilt.write_bytes(b"GGUF")
        return replace(cls.target(), model=str(spoilt))
