"""Every process that descends from another, watched, to tell what is left of them."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from typing_extensions import Self

_LOOK_EVERY_S = 0.02


class Watch:
    """Every process that descends from one while it is watched, for nobody can be asked about them afterwards.

    Args:
        root: process id of an ancestor; None for this process, whose earlier children are none of them.
    """

    def __init__(self, root: int | None = None) -> None:
        self.seen: dict[int, psutil.Process] = {}
        self._root = psutil.Process(root)
        self._before = set() if root else {child.pid for child in self._root.children(recursive=True)}
        self._done = threading.Event()
        self._looking = threading.Lock()
        self._thread = threading.Thread(target=self._keep_looking, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def engine(self) -> psutil.Process:
        """The engine's main process: what the supervisor launched."""
        (supervisor,) = (child for child in self._root.children() if child.pid not in self._before)
        return min(supervisor.children(), key=lambda child: child.create_time())

    def left(self, within_s: float) -> list[str]:
        """Names of those that are still there after a time; zombies are gone."""
        self._look()
        give_up = time.monotonic() + within_s
        while left := [process for process in self.seen.values() if is_there(process)]:
            rest_s = give_up - time.monotonic()
            if rest_s <= 0:
                break
            psutil.wait_procs(left, timeout=min(rest_s, _LOOK_EVERY_S))
        return [f"{process.pid} {name(process)}" for process in left]

    def _keep_looking(self) -> None:
        while not self._done.wait(_LOOK_EVERY_S):
            self._look()

    def _look(self) -> None:
        with self._looking, contextlib.suppress(psutil.Error):
            for process in self._root.children(recursive=True):
                if process.pid not in self._before:
                    self.seen.setdefault(process.pid, process)


def is_there(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return "just gone"
