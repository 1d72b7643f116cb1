"""What else ran on the processors that engine and client ran on, which no rounds of theirs can tell from a slower engine."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class OtherProcesses:
    """Measures, from entering to leaving, the share of the processors' time that went to nobody below this process.

    The engine has to be one of its descendants, or it would be counted as a neighbour. Processors are those that this
    process may run on. Time that a hypervisor gave to another machine counts too, where the system tells it (Linux).
    """

    def __init__(self) -> None:
        self._before_s = (0.0, 0.0, 0.0)
        self.share: float = 0.0
        """0..1, once left; processors count alike."""

    def __enter__(self) -> Self:
        self._before_s = _clocks_s()
        return self

    def __exit__(self, *_: object) -> None:
        whole_s, busy_s, own_s = (
            after - before for after, before in zip(_clocks_s(), self._before_s, strict=True)
        )
        self.share = min(max(0.0, busy_s - own_s) / whole_s, 1.0) if whole_s > 0 else 0.0


def _clocks_s() -> tuple[float, float, float]:
    """Seconds of our processors, those that were not idle, and those of this process and all below it."""
    import psutil

    every = psutil.cpu_times(percpu=True)
    ours = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(every))
    whole_s = busy_s = 0.0
    for times in (every[number] for number in ours if number < len(every)):
        # a guest's time is part of the user's
        passed_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        whole_s += passed_s
        busy_s += passed_s - times.idle - getattr(times, "iowait", 0.0)
    own_s = 0.0
    process = psutil.Process()
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it may have ended just now
            own_s += sum(each.cpu_times()[:4])
    return whole_s, busy_s, own_s
