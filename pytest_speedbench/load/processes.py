"""One round shared by several client processes, for when one core is not enough to read all streams.

Each process has its part of the slots. All take their conversations from one pipe that holds the numbers of those
not sent yet, so that whichever slot is free gets the next, and the batch stays full until there are none, as in one
process. `time.monotonic` is the same clock in all of them. Every process decodes what it read, when all are done.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any

from pytest_speedbench.errors import EngineError
from pytest_speedbench.load.conversation import Prepared
from pytest_speedbench.load.driver import Share, always_alive, merge, one_pass
from pytest_speedbench.load.records import RoundRecord
from pytest_speedbench.settings.options import REQUEST_TIMEOUT_S

if TYPE_CHECKING:
    from typing_extensions import Self

    from pytest_speedbench.engines.base import Engine
    from pytest_speedbench.load.progress import Progress

NUMBER_BYTES = 4
"""Of a conversation, in the pipe. A divisor of the pages that a pipe is made of: no number is ever cut."""
_TICK_S = 0.25
_MAIN = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from pytest_speedbench.load.worker import main; main()"
)


@dataclass(frozen=True)
class Job:
    """What a client process is to do; pickled."""

    engine: Engine
    url: str
    prepared: Prepared
    slots: int
    conversations_fd: int
    """Reading end of the pipe of conversations."""
    request_timeout_s: float


def run_round_shared(
    engine: Engine,
    url: str,
    prepared: Prepared,
    batch_size: int,
    *,
    processes: int,
    conversations: int | None = None,
    request_timeout_s: float = REQUEST_TIMEOUT_S,
    alive: Callable[[], str | None] = always_alive,
    progress: Progress | None = None,
) -> RoundRecord:
    """What `driver.run_round` does, by `processes` processes (at most one for each slot).

    A process in which all requests are silent takes the engine to hang, without asking the others.

    Raises:
        EngineError: the engine cannot be handed to another process.
        RuntimeError: a process failed; with its own words.
    """
    how_many = one_pass(prepared, batch_size) if conversations is None else conversations
    processes = min(processes, batch_size)
    prepared = replace(prepared, generations=())  # large, and of no use any more
    with contextlib.ExitStack() as closing:
        pipe = closing.enter_context(_pipe_of(how_many))
        crew = closing.enter_context(_Crew(processes, engine.name, pipe, alive, progress))
        for number in range(processes):
            slots = batch_size // processes + (number < batch_size % processes)
            crew.hand_out(number, Job(engine, url, prepared, slots, pipe, request_timeout_s))
        crew.all_say("ready")
        crew.tell_all("go")
        crew.all_say("done")
        crew.tell_all("decode")
        shares: list[Share] = crew.all_say("share")
    return merge(batch_size, prepared.tokenization, shares)


@contextlib.contextmanager
def _pipe_of(numbers: int) -> Iterator[int]:
    """The reading end of a pipe that holds 0, 1, ... and then ends."""
    reading, writing = os.pipe()

    def fill() -> None:
        with os.fdopen(writing, "wb") as pipe, contextlib.suppress(BrokenPipeError):
            for number in range(numbers):
                pipe.write(number.to_bytes(NUMBER_BYTES, "little"))

    filling = threading.Thread(target=fill, name="speedbench-conversations", daemon=True)
    try:
        filling.start()
        yield reading
    finally:
        os.close(reading)
        filling.join()


class _Crew:
    """The processes, and what is said between them and us."""

    def __init__(
        self,
        processes: int,
        engine: str,
        pipe: int,
        alive: Callable[[], str | None],
        progress: Progress | None,
    ) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._listening: list[threading.Thread] = []
        self._heard: queue.Queue[tuple[int, str, Any]] = queue.Queue()
        self._errors: list[IO[bytes]] = []
        self._wanted = processes
        self._engine = engine
        self._pipe = pipe
        self._alive = alive
        self._progress = progress

    def __enter__(self) -> Self:
        try:
            for number in range(self._wanted):
                self._errors.append(tempfile.TemporaryFile())
                process = subprocess.Popen(
                    [sys.executable, "-c", _MAIN],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors[-1],
                    pass_fds=(self._pipe,),
                    start_new_session=True,  # Ctrl-C is for us, who end them
                )
                self._processes.append(process)
                self._listening.append(threading.Thread(target=self._listen, args=(number,), daemon=True))
                self._listening[-1].start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for thread in self._listening:
            thread.join()
        for process in self._processes:
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.stdout.close()
        for errors in self._errors:
            errors.close()

    def hand_out(self, number: int, job: Job) -> None:
        """Start a process on its job."""
        try:
            pickled = pickle.dumps(job, pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # whatever a third party's class does when it is pickled
            raise self._not_to_be_shared(error) from None
        self._write(number, pickle.dumps(sys.path))
        self._write(number, pickled)

    def all_say(self, what: str) -> list[Any]:
        """Wait until every process has said it, and do what they ask meanwhile; returns what came with it."""
        said: dict[int, Any] = {}
        while len(said) < self._wanted:
            try:
                number, word, value = self._heard.get(timeout=_TICK_S)
            except queue.Empty:
                if self._progress is not None:
                    self._progress.tick()
                continue
            if word == what:
                said[number] = value
            elif word == "alive?":
                self._write(number, pickle.dumps(self._alive()))
            elif word == "finished" and self._progress is not None:
                self._progress.finished(value)
            elif word == "refused":
                raise self._not_to_be_shared(value)
            elif word == "gone":
                raise RuntimeError(
                    f"client process {number + 1} of {self._wanted} failed: {self._told(number)}"
                )
        return [said[number] for number in range(self._wanted)]

    def tell_all(self, word: str) -> None:
        """Let every process go on."""
        for number in range(self._wanted):
            self._write(number, pickle.dumps(word))

    def _write(self, number: int, data: bytes) -> None:
        stdin = self._processes[number].stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # that it is gone is heard from its other end
            stdin.write(data)
            stdin.flush()

    def _listen(self, number: int) -> None:
        stdout = self._processes[number].stdout
        assert stdout is not None
        try:
            while True:
                word, value = pickle.load(stdout)
                self._heard.put((number, word, value))
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            self._heard.put((number, "gone", None))

    def _told(self, number: int) -> str:
        self._errors[number].seek(0)
        return self._errors[number].read()[-4000:].decode(errors="replace").strip() or "it did not say why"

    def _not_to_be_shared(self, error: object) -> EngineError:
        return EngineError(
            f"--speedbench-client-processes={self._wanted}: engine {self._engine} cannot be handed to another process "
            f"({error}); use 1"
        )
