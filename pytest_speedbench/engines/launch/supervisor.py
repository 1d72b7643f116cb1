"""Stands between the test process and an engine, and ends the engine's whole process tree whatever happens.

It is a program of its own, run by `process.py`, because the one thing that a test process cannot do is to clean
up after its own SIGKILL. It imports the standard library and psutil, nothing of this package.

The test process holds the other ends of two pipes. Down the first (stdin) comes one line of JSON that says what
to launch, later `{"end": true, "grace_s": ...}`; end of file means the same, and comes when the test process is
dead, however it died. Up the second (stdout) go the reports, a line of JSON
each: `launched` or `failed`, then `exited` as soon as the engine has, then `gone`. Standard error is the
engine's log.

Three nets, each for what slips through the one before:

1. On Linux the supervisor is a child subreaper: whatever the engine starts, in whichever session and however
   often forked, stays a descendant of the supervisor. No child left, by the kernel's word, means nothing left.
2. They carry `SPEEDBENCH_LAUNCH_ID` in their environment, and start out in the engine's session. By one or the
   other they are found on systems without subreapers, and by the test process if the supervisor was killed.
   (Both, because setproctitle, which vLLM uses, overwrites the environment that others can read.)
3. If the supervisor is killed, the kernel kills the engine's main process too (PR_SET_PDEATHSIG, Linux), and the
   test process sweeps up the rest by net 2. Should both be killed at once, the main process's own children are
   left to notice that it is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

LAUNCH_ID = "SPEEDBENCH_LAUNCH_ID"
"""Environment variable that marks every process of one launch."""
SIGKILL_LIMIT_S = 30.0
"""A process that lives this long after SIGKILL hangs in the kernel: reported, and no longer waited for."""

_END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def of_launch(launch_id: str, session: int | None) -> list[psutil.Process]:
    """Living processes that carry the mark of a launch or are in its engine's session.

    Args:
        launch_id: value of `SPEEDBENCH_LAUNCH_ID`.
        session: process id of the engine's main process, which leads the session; None to go by the mark alone.
    """
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # gone meanwhile, or not ours to look into
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if os.getsid(process.pid) == session or process.environ().get(LAUNCH_ID) == launch_id:
                found.append(process)
    return found


def kill_until_gone(remaining: Callable[[], list[psutil.Process]]) -> list[int]:
    """SIGKILL what `remaining` finds, again and again, for a tree may grow while it is cut down.

    Returns:
        Process ids that were still there after `SIGKILL_LIMIT_S`; empty when all are gone.
    """
    import psutil

    give_up = time.monotonic() + SIGKILL_LIMIT_S
    while processes := remaining():
        if time.monotonic() > give_up:
            return sorted(process.pid for process in processes)
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.01)
    return []


class Supervisor:
    """One engine's life, from launch to the end of its last descendant."""

    def __init__(self, orders: int, reports: int) -> None:
        self._orders = orders
        self._reports = reports
        self._unread = b""
        self._parent = os.getppid()
        self._grace_s = 0.0
        self._end = False
        self._engine: int | None = None
        self._exit_code: int | None = None
        self._wake = _wake_up_on(signal.SIGCHLD, *_END_SIGNALS)

    def run(self) -> None:
        """Launch what the first order says and return once nothing of it is left."""
        order: dict[str, Any] | None = None
        while order is None:
            self._wait(None)
            if self._end:
                return
            order = next(iter(self._lines()), None)
        self._grace_s = order["grace_s"]
        if not self._launch(order["command"], order["environment"]):
            return
        while self._exit_code is None and not self._end:
            self._wait(1.0)
        if self._exit_code is None:
            self._ask_to_end()
        left = kill_until_gone(lambda: self._remaining(order["environment"][LAUNCH_ID]))
        self._report(event="gone", left=left)

    def _launch(self, command: list[str], environment: dict[str, str]) -> bool:
        # A test process may have blocked signals in the thread that started us; the engine must hear SIGTERM.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            engine = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                stderr=sys.stderr,
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._report(event="failed", reason=reason or str(error))
            return False
        self._engine = engine.pid
        # Reaped below together with everything inherited, so that Popen must not wait for it as well.
        engine.returncode = 0
        self._report(event="launched", pid=engine.pid)
        return True

    def _ask_to_end(self) -> None:
        """SIGTERM to the main process alone: some engines take it for a crash when their children get it too."""
        assert self._engine is not None  # launched, and not reaped yet: the id is still its own
        os.kill(self._engine, signal.SIGTERM)
        give_up = time.monotonic() + self._grace_s
        while self._exit_code is None and (rest_s := give_up - time.monotonic()) > 0:
            self._wait(rest_s, listen=False)
        if self._exit_code is None:
            note = f"[speedbench] still there {self._grace_s:g} s after SIGTERM: killed"
            print(note, file=sys.stderr, flush=True)

    def _wait(self, timeout_s: float | None, listen: bool = True) -> None:
        """Until an order, a signal or a child's exit, but no longer than `timeout_s`."""
        watched = [self._wake, self._orders] if listen else [self._wake]
        ready, _, _ = select.select(watched, [], [], timeout_s)
        if self._wake in ready and set(os.read(self._wake, 4096)) & set(_END_SIGNALS):
            self._end = True
        if self._orders in ready:
            received = os.read(self._orders, 65536)
            self._unread += received
            self._end = self._end or not received
            if self._engine is not None:
                for order in self._lines():
                    self._grace_s = order["grace_s"]
                    self._end = self._end or order["end"]
        # A process forked by the test process may hold the pipe open after that one's death.
        self._end = self._end or os.getppid() != self._parent
        self._reap()

    def _lines(self) -> list[dict[str, Any]]:
        *lines, self._unread = self._unread.split(b"\n")
        return [json.loads(line) for line in lines]

    def _reap(self) -> bool:
        """Collect every child that has exited; whether there are any left."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                if pid == self._engine:
                    self._exit_code = os.waitstatus_to_exitcode(status)
                    self._report(event="exited", code=self._exit_code)
        except ChildProcessError:
            return False

    def _remaining(self, launch_id: str) -> list[psutil.Process]:
        import psutil

        # Children that have just been adopted may not show in one reading of the process table: ask until the
        # table and the kernel agree.
        while self._reap():
            if children := psutil.Process().children(recursive=True):
                return children
        return of_launch(launch_id, self._engine)

    def _report(self, **report: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the test process is dead: nobody to tell
            os.write(self._reports, json.dumps(report).encode() + b"\n")


def _wake_up_on(*signals: signal.Signals) -> int:
    """Descriptor from which the numbers of arriving signals can be read."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in signals:
        signal.signal(number, lambda *_: None)
    return reader


def _prctl(option: int, value: int) -> None:
    """Linux's prctl; does nothing elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def _die_with(supervisor: int) -> Callable[[], None]:
    """What the engine does between fork and exec, so that it cannot outlive its supervisor."""

    def prepare() -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:  # it died before the line above
            os._exit(1)

    return prepare


if __name__ == "__main__":
    # Started with -I, so that no file of the user's shadows a module; the caller says where psutil is.
    sys.path.extend(sys.argv[1:])
    import psutil  # missing, it must fail now rather than when there is a tree to end

    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    Supervisor(orders=0, reports=1).run()
