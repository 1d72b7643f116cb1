"""A modelled accelerator: how long a forward pass would take, and a pace that keeps to it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


@dataclass(frozen=True)
class Pass:
    """The work of one forward pass over a batch."""

    decoding: int
    """Requests in decode."""
    verified: int
    """Tokens the target model looks at for them: one each, and their drafts."""
    draft_passes: int = 0
    """Forward passes of the draft model before it; 0 where drafts come from a lookup."""
    prompt_tokens: int = 0
    """Tokens of the requests that are prefilled in the same pass."""


@dataclass(frozen=True)
class Accelerator:
    """Step latency as a roofline: reading the weights takes its time, and so does each token's arithmetic.

    A pass of the target model takes `max(floor, verified tokens x token)`. Below the floor drafts are
    verified for nothing, so that few requests profit from speculation; once the batch fills the arithmetic,
    every rejected draft costs time that another request could have used. With the defaults and 3 drafted tokens
    the speedup is about 1.7 at batch size 1 and an acceptance length of 2.4, and passes 1 near batch size 25.
    """

    floor_s: float = 4.0e-3
    token_s: float = 80.0e-6
    draft_share: float = 0.125
    """Size of the draft model as a share of the target: a pass of it takes this share of the time."""
    prompt_token_s: float = 4.0e-6
    """One prompt token in prefill, which reads no keys and values of earlier steps."""
    slowdown: float = 1.0
    """Multiplies all latencies."""

    def latency_s(self, work: Pass) -> float:
        """Seconds that a pass takes."""
        target = max(self.floor_s, work.verified * self.token_s)
        drafting = work.draft_passes * self.draft_share * max(self.floor_s, work.decoding * self.token_s)
        return self.slowdown * (drafting + target + work.prompt_tokens * self.prompt_token_s)

    def speedup(self, batch_size: int, acceptance_length: float, draft_length: int) -> float:
        """Output tokens per second with a draft model over those without, in steady decode."""
        plain = self.latency_s(Pass(batch_size, batch_size))
        drafted = self.latency_s(Pass(batch_size, batch_size * (draft_length + 1), draft_length))
        return acceptance_length * plain / drafted


class Clock:
    """Keeps passes to the modelled latency.

    Each pass is due at the *due time* of the one before plus its latency, so that waking late once is made up
    for by waking earlier next: throughput is the model's, as long as the machine keeps up with it. Where it does
    not, `late_s` grows.
    """

    def __init__(self) -> None:
        self.passes: int = 0
        self.late_passes: int = 0
        """Passes that ended later than due by more than their own latency."""
        self.late_s: float = 0.0
        """Seconds by which passes ended later than due, in sum."""
        self._due_s = 0.0

    def restart(self) -> None:
        """Begin now: nothing was due before."""
        self._due_s = asyncio.get_running_loop().time()

    async def wait(self, latency_s: float) -> None:
        """Wait until a pass that began when the last one was due, and takes `latency_s`, is over."""
        loop = asyncio.get_running_loop()
        self._due_s += latency_s
        await asyncio.sleep(max(0.0, self._due_s - loop.time()))
        late_s = loop.time() - self._due_s
        self.passes += 1
        self.late_s += max(0.0, late_s)
        self.late_passes += late_s > latency_s
