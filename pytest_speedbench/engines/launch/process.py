"""The one place that starts a server and is sure to end it.

Built on psutil, not on mirakuru: that is LGPL, which some engine repositories do not take, and its clean-up runs
in the test process, so that nothing is cleaned up after a SIGKILL of that process. Its defaults are traps for
engines besides (a HEAD request that many answer with 405, an unread output pipe that stops a talkative server,
an hour's patience). What is left to write is `supervisor.py`, which outlives the test process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_speedbench.engines.control import Control
from pytest_speedbench.engines.launch import ports, supervisor
from pytest_speedbench.engines.launch.environment import MASK, is_secret
from pytest_speedbench.engines.launch.log import mask, open_log, replaceable, tail
from pytest_speedbench.errors import EngineError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    import psutil
    from typing_extensions import Self

    from pytest_speedbench.engines.base import Engine, Launch
    from pytest_speedbench.settings.target import Target

GRACE_S = 10.0
"""Between SIGTERM and SIGKILL, in seconds."""
TAIL_LINES = 30
"""Log lines in an error."""

_PORTS_TRIED = 3
_POLL_S = 0.1
_PROGRESS_S = 10.0
_SUPERVISOR_START_S = 60.0
_NOT_INHERITED = ("PYTEST_", "COV_CORE_", "COVERAGE_PROCESS_")
"""Variables that would make the engine's own Python believe it was run by pytest, or measure its coverage."""
_ADDRESS_IN_USE = re.compile(
    r"address (is )?already in use|EADDRINUSE|\b(errno|os error) (98|48)\b", re.IGNORECASE
)


class EngineProcess:
    """A launched server and everything it started; ended by `stop`, or with the test process at the latest.

    Made by `start`. A context manager that stops on leaving.
    """

    name: str
    """The engine's."""
    url: str
    """Base URL."""
    command: str
    """As a person would type it, values of secret arguments masked."""
    log: Path
    """Standard output and error of the engine, after a first line that holds the command."""

    def __init__(self, name: str, launch: Launch, port: int, logs: Path) -> None:
        import psutil

        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.log, log_file = open_log(logs, name)
        command = _with_files(launch, self.log)
        masked, secrets = mask(command)
        self._secrets = secrets + replaceable(
            value for name, value in launch.environment.items() if is_secret(name)
        )
        self.command = shlex.join(masked)
        with log_file:
            self._log_start = log_file.write(f"[speedbench] {self.command}\n".encode())
            log_file.flush()
            self._supervisor = _start_supervisor(log_file.fileno())
        self._launch_id = uuid.uuid4().hex
        self._reading = threading.Lock()
        self._unread = b""
        self._reports: dict[str, dict[str, Any]] = {}
        self._ended = False
        self._stopped = False
        self._main: psutil.Process | None = None
        environment = {**_inherited(), "PYTHONUNBUFFERED": "1", **launch.environment}
        environment[supervisor.LAUNCH_ID] = self._launch_id
        try:
            self._order(command=command, environment=environment, grace_s=GRACE_S)
            give_up = time.monotonic() + _SUPERVISOR_START_S
            while not self._ended and not {"launched", "failed"} & self._reports.keys():
                if time.monotonic() > give_up:
                    break
                self._receive(1.0)
            if "launched" not in self._reports:
                raise self._not_launched(launch.command[0])
            with contextlib.suppress(psutil.NoSuchProcess):  # it has exited already
                self._main = psutil.Process(self._reports["launched"]["pid"])
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def exit_code(self) -> int | None:
        """None while the engine's main process lives, then its exit code; -n if signal n killed it."""
        self._receive(0.0)
        if (exited := self._reports.get("exited")) is not None:
            return int(exited["code"])
        # A supervisor that is gone without a report was killed, and the kernel killed the engine with it.
        return -signal.SIGKILL if self._ended else None

    def log_tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines of the engine's own output; of a progress bar, only what it showed last."""
        text = tail(self.log, self._log_start, lines)
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return text

    def error(self, what: str) -> EngineError:
        """An error about this engine, with all that a person needs to look further.

        Args:
            what: what happened, to follow the engine's name: `exited with code 1 before it was ready`.
        """
        shown = self.log_tail()
        lines = [f"{self.name} {what}", f"  command: {self.command}", f"  log: {self.log}"]
        lines += [f"  last lines of the log (at most {TAIL_LINES}):" if shown else "  the log is empty"]
        lines += [f"    {line}" for line in shown.split("\n") if shown]
        return EngineError("\n".join(lines))

    def stop(self, grace_s: float = GRACE_S) -> None:
        """End the engine and return once no process of it is left; a second call does nothing.

        Args:
            grace_s: how long the engine may take to end by itself after SIGTERM, before all of it is killed.

        Raises:
            EngineError: a process outlived its SIGKILL, which happens when it hangs in a driver.
        """
        if self._stopped:
            return
        with contextlib.suppress(OSError, ValueError):  # gone, or told before
            self._order(end=True, grace_s=grace_s)
        assert self._supervisor.stdin is not None
        with contextlib.suppress(OSError):
            self._supervisor.stdin.close()
        give_up = time.monotonic() + grace_s + 2 * supervisor.SIGKILL_LIMIT_S
        while not self._ended and time.monotonic() < give_up:
            self._receive(1.0)
        if not self._ended:
            self._supervisor.kill()
        self._supervisor.wait()
        self._stopped = self._ended = True
        if "gone" in self._reports:
            left = self._reports["gone"]["left"]
        else:
            left = supervisor.kill_until_gone(self._survivors)
        assert self._supervisor.stdout is not None
        self._supervisor.stdout.close()
        if left:
            processes = ", ".join(map(str, left))
            raise EngineError(f"{self.name}: processes {processes} outlived SIGKILL; end them by hand")

    def wait(self, timeout_s: float) -> None:
        """Until the engine exits, but no longer than `timeout_s`."""
        if self.exit_code() is None:
            self._receive(timeout_s)

    def foreign_listeners(self, port: int) -> dict[int, str]:
        """Processes that listen on a port and are not of this engine's tree: process id -> name.

        Only what can be seen counts: a listener of another user has no visible process.
        """
        import psutil

        listeners = ports.listeners(port)
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._supervisor.pid).children(recursive=True):
                listeners.pop(process.pid, None)
        if listeners:
            for process in self._survivors():
                listeners.pop(process.pid, None)
        return listeners

    def _order(self, **order: Any) -> None:
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.write(json.dumps(order).encode() + b"\n")
        self._supervisor.stdin.flush()

    def _receive(self, timeout_s: float) -> None:
        """Take in the supervisor's reports; return at the first, at its end, or after `timeout_s`."""
        if self._ended:
            return
        assert self._supervisor.stdout is not None
        with selectors.DefaultSelector() as selector:  # select() knows no descriptor above 1023
            selector.register(self._supervisor.stdout, selectors.EVENT_READ)
            selector.select(timeout_s)
        with self._reading:
            while not self._ended:
                try:
                    received = os.read(self._supervisor.stdout.fileno(), 65536)
                except BlockingIOError:
                    return
                self._ended = not received
                *lines, self._unread = (self._unread + received).split(b"\n")
                for line in lines:
                    report = json.loads(line)
                    self._reports[report["event"]] = report

    def _survivors(self) -> list[psutil.Process]:
        """Processes of this launch, found without the supervisor's help."""
        import psutil

        session = None if self._main is None else self._main.pid
        # The number of a session that has ended may have been given to a stranger.
        if self._main is not None and psutil.pid_exists(self._main.pid) and not self._main.is_running():
            session = None
        return supervisor.of_launch(self._launch_id, session)

    def _not_launched(self, program: str) -> EngineError:
        failed = self._reports.get("failed")
        if failed is None:
            return self.error("could not be launched: its supervisor did not start")
        hint = "--speedbench-engine-python names the interpreter that has the engine"
        return EngineError(f"{self.name} could not be launched: {program}: {failed['reason']} ({hint})")


def start(
    engine: Engine, target: Target, logs: Path, progress: Callable[[str], None] | None = None
) -> EngineProcess:
    """Launch an engine on a free port and wait until it can generate.

    Args:
        engine: what to launch.
        target: what it was set up for; gives the time that start-up may take.
        logs: folder for the engine's log. Where the folder around it has to be made, git is told to ignore it.
        progress: told in a few words what is going on, at each change and every ten seconds.

    Raises:
        EngineError: it could not be launched, exited, was not ready in time, or lost its port three times.
    """
    tell = progress or (lambda _: None)
    lost: list[str] = []
    while True:
        port = ports.free()
        launch = engine.launch(port)
        launch = replace(launch, environment={**launch.environment, **target.environment})
        process = EngineProcess(engine.name, launch, port, logs)
        try:
            tell(f"starting {engine.name}, log {process.log}")
            taken_by = _wait_until_ready(process, engine.ready_path, port, target.engine_timeout_s, tell)
            if taken_by is None:
                return process
            process.stop()
        except BaseException:
            process.stop()
            raise
        lost.append(f"{port} ({taken_by})")
        if len(lost) == _PORTS_TRIED:
            raise process.error(
                f"lost {_PORTS_TRIED} ports in a row to other processes: {', '.join(lost)}; "
                "is another test run busy on this machine?"
            )
        tell(f"{engine.name} lost port {lost[-1]} to another process, trying another port")


def describe_exit(code: int) -> str:
    """An exit code in words: `exited with code 1`, `was killed by SIGSEGV`."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _wait_until_ready(
    process: EngineProcess, ready_path: str, port: int, timeout_s: float, tell: Callable[[str], None]
) -> str | None:
    """None once the engine is ready, or who took its port from it."""
    begun = time.monotonic()
    told = 0.0
    control = Control(process.url)
    try:
        while not control.answers(ready_path):
            if (code := process.exit_code()) is not None:
                process.stop()  # with its last descendant gone, the log is complete
                if taken_by := _taken_by(process, port):
                    return taken_by
                raise process.error(f"{describe_exit(code)} before it was ready")
            elapsed_s = time.monotonic() - begun
            if elapsed_s >= timeout_s:
                process.stop()
                raise process.error(f"was not ready after {timeout_s:g} s (--speedbench-engine-timeout)")
            if elapsed_s >= told + _PROGRESS_S:
                told = elapsed_s
                tell(f"{process.name} is not ready after {elapsed_s:.0f} s, log ends: {process.log_tail(1)}")
            process.wait(min(_POLL_S, timeout_s - elapsed_s))
    finally:
        control.close()
    # Whoever answered may be another server, which took the port between our choice of it and the engine's
    # bind. Measuring that one would be worse than any failure to start.
    if foreign := process.foreign_listeners(port):
        return _name(foreign)
    if (code := process.exit_code()) is not None:
        process.stop()
        raise process.error(f"{describe_exit(code)} just after it was ready")
    tell(f"{process.name} is ready after {time.monotonic() - begun:.1f} s")
    return None


def _taken_by(process: EngineProcess, port: int) -> str | None:
    """Who kept an engine that has exited from its port; None where it exited for another reason."""
    if foreign := process.foreign_listeners(port):
        return _name(foreign)
    # All of the log: an engine may say more than fits an error between losing its port and its exit.
    return (
        "address already in use" if _ADDRESS_IN_USE.search(process.log.read_text(errors="replace")) else None
    )


def _name(processes: dict[int, str]) -> str:
    return ", ".join(f"process {pid}, {name}" for pid, name in processes.items())


def _with_files(launch: Launch, log: Path) -> list[str]:
    """Write the files of a launch as `<engine>-<n>.<name>`; the command that names them."""
    paths = {f"{{{name}}}": log.with_suffix(f".{name}") for name in launch.files}
    for (name, text), path in zip(launch.files.items(), paths.values(), strict=True):
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise EngineError(f"cannot write {name} to {path}: {error.strerror}") from None
    return [str(paths.get(argument, argument)) for argument in launch.command]


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}


def _start_supervisor(log: int) -> subprocess.Popen[bytes]:
    import psutil

    # Run by its path under -I, it finds its modules whatever the user's working directory, PYTHONPATH or
    # conftest put in the way; psutil it finds where this process found it.
    psutil_home = Path(psutil.__file__).parents[1]
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", supervisor.__file__, str(psutil_home)],
            env=_inherited(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the test process, which then ends the engine in order
        )
    except OSError as error:
        raise EngineError(f"cannot run {sys.executable}, needed to supervise the engine: {error}") from None
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    return process
