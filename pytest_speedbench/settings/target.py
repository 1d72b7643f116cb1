"""What is measured: a target, and how its tokens are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pytest_speedbench.settings.options import ENGINE_TIMEOUT_S

_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


def is_local(url: str) -> bool:
    """Whether a URL is of this machine."""
    return urlsplit(url).hostname in _THIS_MACHINE


@dataclass(frozen=True)
class Target:
    """An engine + model + speculative config + launch arguments: what a baseline is about."""

    name: str
    """Names the baseline file."""
    engine: str
    method: str
    draft_length: int
    """Tokens drafted per step (k); 0 for a method without one, such as `none`."""
    model: str | None = None
    draft_model: str | None = None
    engine_args: tuple[str, ...] = ()
    """Further launch arguments, as given."""
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Variables that are added to the engine's environment, and win over those of the test process."""
    engine_python: str | None = None
    """Interpreter that has the engine installed; None for the one that runs pytest."""
    engine_timeout_s: float = ENGINE_TIMEOUT_S
    url: str | None = None
    """A server that already runs, to be measured and left running; None to launch one."""
    hardware: str | None = None
    """What a server on another machine computes on, as its user names it; None where that is not known."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when generation ends."""

    output_length: int
    """Tokens at most (exactly, where `ignore_eos`)."""
    temperature: float
    ignore_eos: bool
    seed: int = 0

    @classmethod
    def exactly(cls, output_length: int) -> Sampling:
        """Greedy, and so many tokens whatever they are."""
        return cls(output_length, temperature=0.0, ignore_eos=True)
