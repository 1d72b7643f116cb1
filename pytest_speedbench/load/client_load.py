"""Whether the client keeps up: its share of a core, its wait for one, and how late its event loop is."""

from __future__ import annotations

import asyncio
import math
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

INTERVAL_S = 0.005
"""200 callbacks a second, 0.1 % of a core."""


@dataclass(frozen=True)
class ClientLoad:
    """What a round cost the client; the fields are `RoundRecord`'s of the same names."""

    client_busy: float
    client_waiting: float
    loop_lag_s_p99: float


class ClientLoadMeter:
    """Measures the thread and the event loop that it is entered on, until it is left.

    A callback every few milliseconds measures its own lateness. Reads and timers wait in the same line: the loop
    turns to what is due once it is through with the reads it has in hand. Samples are for moments at even
    intervals, also those that passed while the loop was held up, and so they are spread as the delays of reads
    are. Event loops keep timers to the millisecond.
    """

    def __init__(self) -> None:
        self._lags_s = array("d")
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._clocks_s = (0.0, 0.0, 0.0)

    def __enter__(self) -> Self:
        self._clocks_s = _clocks_s()
        self._due_s = self._clocks_s[0]
        self._wait(asyncio.get_running_loop())
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        wall_s, busy_s, waited_s = (
            end - start for end, start in zip(_clocks_s(), self._clocks_s, strict=True)
        )
        self._clocks_s = (wall_s, busy_s, waited_s)

    def effort(self) -> ClientLoad:
        """What was measured."""
        wall_s, busy_s, waited_s = self._clocks_s
        return ClientLoad(busy_s / wall_s, waited_s / wall_s, p99(self._lags_s) or 0.0)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_s += INTERVAL_S
        self._timer = loop.call_later(max(0.0, self._due_s - time.monotonic()), self._sample, loop)

    def _sample(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = time.monotonic()
        self._lags_s.append(max(0.0, now_s - self._due_s))
        while self._due_s + INTERVAL_S < now_s:
            self._due_s += INTERVAL_S
            self._lags_s.append(now_s - self._due_s)
        self._wait(loop)


def _clocks_s() -> tuple[float, float, float]:
    """Of this thread, in seconds: wall clock, time computing, and time for which it could have and had no core.

    The last is counted by Linux, in nanoseconds (`Documentation/scheduler/sched-stats.rst`, schedstat of a task),
    and 0 elsewhere.
    """
    waited_s = 0.0
    try:
        with open("/proc/thread-self/schedstat") as told:
            waited_s = int(told.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        pass
    return time.monotonic(), time.thread_time(), waited_s


def p99(values: Sequence[float]) -> float | None:
    """The 99th percentile: the smallest value that 99 % do not exceed; None without values."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1] if values else None
