"""The engine of a run as a test may use it: where it listens, and what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_speedbench.engines.base import Hardware
    from pytest_speedbench.run.schedule import Schedule
    from pytest_speedbench.settings.target import Target


class RunningEngine:
    """The very engine that is measured.

    An engine may be ended and started anew between tests, where another target is measured in the meantime. So every
    property is as of now, and starts the engine if it does not run.

    Args:
        schedule: of the run.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    @property
    def target(self) -> Target:
        """Engine, model, method, launch arguments."""
        return self._schedule.main.settings.target

    @property
    def name(self) -> str:
        """As in `--speedbench-engine`."""
        return self.target.engine

    @property
    def url(self) -> str:
        """Base URL, such as `http://127.0.0.1:8000`.

        Raises:
            EngineError: the engine could not be started, or died.
        """
        return self._schedule.start_main()

    @property
    def log(self) -> Path | None:
        """What the engine wrote to its output; None for a server that was not launched here."""
        self._schedule.start_main()
        return self._schedule.main.log

    @property
    def version(self) -> str:
        """As the engine reports it."""
        self._schedule.start_main()
        return self._schedule.main.version

    @property
    def hardware(self) -> Hardware:
        """What the engine computes on."""
        self._schedule.start_main()
        hardware = self._schedule.main.hardware
        assert hardware is not None, "known since the start"
        return hardware
