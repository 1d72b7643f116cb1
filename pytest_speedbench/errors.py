"""The one family of errors that a user of the plugin can meet."""

from __future__ import annotations


class SpeedBenchError(Exception):
    """Something a person can act on: the message says what happened, where, and what to do."""


class SettingsError(SpeedBenchError):
    """An option, an ini value, a marker or `speedbench.yaml` holds something it may not."""


class DataError(SpeedBenchError):
    """Prepared SPEED-Bench data is missing, damaged or not resolved; names file and row."""


class EngineError(SpeedBenchError):
    """An engine could not be launched, did not become ready, or died."""


class BaselineError(SpeedBenchError):
    """A baseline file cannot be read, written, or trusted."""


class NotMeasured(SpeedBenchError):
    """A cell could not be measured, which says nothing about the engine's quality: it is safe to try again.

    Args:
        message: for a person.
        reason: the part of it that is the same for every cell it concerns; the message itself if it is left out.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason: str = message if reason is None else reason
