"""A client process: sends its part of a round. Started and told what to do by `processes`."""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any, cast

from pytest_speedbench.load.driver import drive
from pytest_speedbench.load.processes import NUMBER_BYTES, Job
from pytest_speedbench.load.progress import Progress


class _Parent:
    """The process that started this one: it is asked and told over the standard streams."""

    def __init__(self, hears: IO[bytes], says: IO[bytes]) -> None:
        self._says = says
        self._heard: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._listen, args=(hears,), daemon=True).start()

    def say(self, word: str, value: object = None) -> None:
        """Tell something."""
        pickle.dump((word, value), self._says, pickle.HIGHEST_PROTOCOL)
        self._says.flush()

    def hear(self) -> Any:
        """Wait for an answer."""
        return self._heard.get()

    def ask(self, word: str, value: object = None) -> Any:
        """Tell something, and wait for the answer to it."""
        self.say(word, value)
        return self.hear()

    def _listen(self, hears: IO[bytes]) -> None:
        try:
            while True:
                self._heard.put(pickle.load(hears))
        except (EOFError, OSError):
            os._exit(1)  # nobody waits for us any more


class _Told(Progress):
    """Counts in the process that has the terminal."""

    def __init__(self, parent: _Parent) -> None:
        super().__init__("", None)
        self._parent = parent

    def finished(self, output_tokens: int | None) -> None:
        """One more request has ended."""
        self._parent.say("finished", output_tokens)


def _conversations(reading: int, prompts: int) -> Iterator[tuple[int, int]]:
    while number := os.read(reading, NUMBER_BYTES):
        yield (whole := int.from_bytes(number, "little")) % prompts, whole // prompts


def main() -> None:
    """Read a job, do it when told, and tell what came of it."""
    says = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what an engine's module may print is no message
    try:
        job = cast(Job, pickle.load(sys.stdin.buffer))
    except Exception as error:  # a class that is not to be found here, or not to be built again
        _Parent(sys.stdin.buffer, says).ask("refused", f"{type(error).__name__}: {error}")
        return
    parent = _Parent(sys.stdin.buffer, says)
    driven = drive(
        job.engine,
        job.url,
        job.prepared,
        job.slots,
        _conversations(job.conversations_fd, len(job.prepared.prompts)),
        request_timeout_s=job.request_timeout_s,
        alive=lambda: cast("str | None", parent.ask("alive?")),
        progress=_Told(parent),
        when_ready=lambda: cast(None, parent.ask("ready")),
    )
    parent.ask("done")
    parent.ask("share", driven.decoded(job.engine))
