from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from pytest_speedbench.load.eventloop import run


@pytest.fixture
def ctrl_c_raises() -> Iterator[None]:
    """As in a test run started from a terminal; workers of pytest-xdist ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def load_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "speedbench-load"]


async def answer() -> int:
    await asyncio.sleep(0)
    return 42


def test_returns_what_the_coroutine_returns() -> None:
    assert run(answer) == 42


def test_raises_what_the_coroutine_raises() -> None:
    async def fails() -> None:
        raise ValueError("as it was")

    with pytest.raises(ValueError, match="as it was"):
        run(fails)
    assert load_threads() == []


def test_works_inside_a_running_event_loop() -> None:
    async def asynchronous_test() -> int:
        return run(answer)

    assert asyncio.run(asynchronous_test()) == 42


def test_ctrl_c_cancels_every_task_before_it_goes_on(ctrl_c_raises: None) -> None:
    cleaned_up: list[str] = []

    async def waits(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.append(name)

    async def main() -> None:
        tasks = [asyncio.create_task(waits(name)) for name in ("a", "b")]
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.gather(*tasks)

    with pytest.raises(KeyboardInterrupt):
        run(main)
    assert sorted(cleaned_up) == ["a", "b"]
    assert load_threads() == []


def test_tasks_left_behind_are_cancelled() -> None:
    cleaned_up: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.append("left behind")

    async def main() -> asyncio.Task[None]:
        task = asyncio.create_task(waits())
        await asyncio.sleep(0)
        return task

    assert run(main).cancelled()
    assert cleaned_up == ["left behind"]
