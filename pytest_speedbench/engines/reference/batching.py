"""Continuous batching: every pass takes one step of each running request and prefills those that arrived."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from pytest_speedbench.engines.reference.clock import Accelerator, Clock, Pass
from pytest_speedbench.engines.reference.decoding import Decoding, Step
from pytest_speedbench.engines.reference.vocabulary import END


@dataclass
class Tally:
    """What speculative decoding did, counted as vLLM counts: only steps that had a draft."""

    draft_length: int
    histogram: list[int] = field(default_factory=list)
    """Steps by number of accepted draft tokens, 0 to k."""
    drafted_tokens: int = 0

    def __post_init__(self) -> None:
        self.histogram = [0] * (self.draft_length + 1)

    def add(self, step: Step) -> None:
        """Count one step; tokens that go past the end of the output count too."""
        if step.drafted:
            self.histogram[step.accepted] += 1
            self.drafted_tokens += step.drafted

    @property
    def drafted_steps(self) -> int:
        """Steps that verified at least one draft token."""
        return sum(self.histogram)

    @property
    def accepted_tokens(self) -> int:
        """Draft tokens that were accepted."""
        return sum(accepted * steps for accepted, steps in enumerate(self.histogram))

    @property
    def accepted_per_position(self) -> list[int]:
        """Steps in which position 1, 2, ... k was accepted."""
        return [sum(self.histogram[position:]) for position in range(1, self.draft_length + 1)]


@dataclass(frozen=True)
class Delivery:
    """Tokens of one step, cut at the end of the output."""

    tokens: tuple[int, ...]
    finish_reason: str | None
    """`length` or `stop` with the last tokens of a request."""


class Job:
    """A request on its way through the batch.

    Args:
        decoding: yields its tokens.
        prompt_tokens: length of its prompt.
        output_length: tokens at most.
        draft_length: k, for its tally.
    """

    def __init__(self, decoding: Decoding, prompt_tokens: int, output_length: int, draft_length: int) -> None:
        self.decoding = decoding
        self.prompt_tokens = prompt_tokens
        self.tally: Tally = Tally(draft_length)
        self.cancelled = False
        self.deliveries: asyncio.Queue[Delivery] = asyncio.Queue()
        self._left = output_length

    def deliver(self, tokens: tuple[int, ...]) -> bool:
        """Hand over what belongs to the output; returns whether there is more to come."""
        tokens = tokens[: self._left]
        finish_reason = None
        if END in tokens:
            tokens = tokens[: tokens.index(END) + 1]
            finish_reason = "stop"
        self._left -= len(tokens)
        if finish_reason is None and self._left == 0:
            finish_reason = "length"
        self.deliveries.put_nowait(Delivery(tokens, finish_reason))
        return finish_reason is None


class Batch:
    """Runs all jobs of a server, pass by pass.

    Args:
        accelerator: says how long a pass takes.
        draft_passes: passes of a draft model before each pass of the target (k, or 0 without one).
        draft_length: k, for the server's tally.
    """

    def __init__(self, accelerator: Accelerator, draft_passes: int, draft_length: int) -> None:
        self.clock: Clock = Clock()
        self.tally: Tally = Tally(draft_length)
        self.prompt_tokens: int = 0
        self.generated_tokens: int = 0
        self.decode_steps: int = 0
        self.decode_s: float = 0.0
        """Sum over decode steps of their modelled latency, in seconds."""
        self.running: list[Job] = []
        self.waiting: list[Job] = []
        self._accelerator = accelerator
        self._draft_passes = draft_passes
        self._arrived = asyncio.Event()

    def submit(self, job: Job) -> None:
        """Let a job join at the next pass."""
        self.waiting.append(job)
        self._arrived.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            self.running = [job for job in self.running if not job.cancelled]
            self.waiting = [job for job in self.waiting if not job.cancelled]
            if not self.running and not self.waiting:
                self._arrived.clear()
                await self._arrived.wait()
                self.clock.restart()
            await self._pass()

    async def _pass(self) -> None:
        arrived, self.waiting = self.waiting, []
        # The work is done while the modelled accelerator would be doing it, not on top of that.
        steps = [(job, job.decoding.step()) for job in self.running]
        first = [(job, job.decoding.first()) for job in arrived]
        work = Pass(
            decoding=len(steps),
            verified=sum(1 + step.drafted for _, step in steps),
            draft_passes=self._draft_passes if steps else 0,
            prompt_tokens=sum(job.prompt_tokens for job in arrived),
        )
        latency_s = self._accelerator.latency_s(work)
        await self.clock.wait(latency_s)
        self.decode_steps += len(steps)
        self.decode_s += len(steps) * latency_s
        going: list[Job] = []
        for job, step in steps:
            job.tally.add(step)
            self.tally.add(step)
            self.generated_tokens += len(step.tokens)
            if job.deliver(step.tokens):
                going.append(job)
        for job, token in first:
            self.prompt_tokens += job.prompt_tokens
            self.generated_tokens += 1
            if job.deliver((token,)):
                going.append(job)
        self.running = going
