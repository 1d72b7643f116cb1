"""Run one coroutine to its end from anywhere: a plain test, an async test, or while Ctrl-C is pressed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

Result = TypeVar("Result")

_WAKES_EVERY_S = 0.5


def run(main: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run `main()` on an event loop of its own, in a thread of its own, and return its result.

    The thread serves two ends. A test that is a coroutine itself has a loop running in its thread already, and
    a thread can run one only. And whatever interrupts the calling thread (Ctrl-C, a timeout plugin's signal)
    strikes here, where nothing is half done: the coroutine is cancelled in order, and the interruption goes on.
    The loop is asyncio's own, whatever another part of the process has set: the client's cost is known on it.
    """
    loop = asyncio.SelectorEventLoop()
    task = loop.create_task(main())
    outcome: Future[Result] = Future()
    thread = threading.Thread(
        target=_complete, args=(loop, task, outcome), name="speedbench-load", daemon=True
    )
    try:
        thread.start()
        while not outcome.done():
            # not without end: a signal that comes just before a thread begins to wait does not wake it
            wait([outcome], _WAKES_EVERY_S)
        return outcome.result()
    except BaseException:
        with contextlib.suppress(RuntimeError):  # the loop is closed: it had come to its end by itself
            loop.call_soon_threadsafe(task.cancel)
        raise
    finally:
        if thread.is_alive():  # not if it was the start that was interrupted
            thread.join()


def _complete(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Result], outcome: Future[Result]) -> None:
    try:
        try:
            result = loop.run_until_complete(task)
        finally:
            try:
                loop.run_until_complete(_cancel_the_rest())
                loop.run_until_complete(loop.shutdown_asyncgens())
            finally:
                loop.close()
    except BaseException as error:  # whatever it is, the calling thread waits for it
        outcome.set_exception(error)
    else:
        outcome.set_result(result)


async def _cancel_the_rest() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
