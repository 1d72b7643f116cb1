"""What `--speedbench-save` does at the end of a run: everything that was measured becomes the baseline, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pytest_speedbench.engines.base import Hardware
from pytest_speedbench.errors import BaselineError
from pytest_speedbench.gate.baseline import Conditions, dirty_warning
from pytest_speedbench.gate.store import add
from pytest_speedbench.metrics.measurement import Measurement
from pytest_speedbench.settings.read import Settings


def save_run(
    settings: Settings,
    measurements: Sequence[Measurement],
    conditions: Conditions,
    hardware: Hardware | None,
    *,
    why_not: str | None,
    shown: Callable[[Path], str],
) -> tuple[bool, list[str]]:
    """Merge a run's measurements into the target's baseline file.

    Args:
        settings: of the run.
        measurements: of the cells that are to be stored, means left out.
        conditions: of the run.
        hardware: what it ran on; None where the engine never ran.
        why_not: why nothing may be saved, if so.
        shown: how a path is written for a person.

    Returns:
        Whether everything that was to be written could be written, and what to say about it.
    """
    path = settings.baseline_path
    if why_not is None and (hardware is None or not measurements):
        why_not = "no cell was measured"
    if why_not is not None or hardware is None:
        return True, [f"nothing was saved to {shown(path)}: {why_not}"]
    try:
        merged = add(path, settings.target.name, measurements, conditions, hardware.key)
    except BaselineError as error:
        return False, [f"nothing was saved: {error}"]
    warning = dirty_warning(conditions.commit)
    return True, [
        f"saved {counted(len(measurements), 'cell')} to {shown(path)}; look at the change before you commit it",
        *merged.omissions,
        *([] if warning is None else [f"warning: {warning}"]),
    ]


def counted(number: int, noun: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
