"""The lines at the top of a run: engine, target, data, baselines."""

from __future__ import annotations

import os.path
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_speedbench.report.wording import target_line

if TYPE_CHECKING:
    from pytest_speedbench.settings.read import Settings


def header(settings: Settings, rootdir: Path) -> list[str]:
    """Lines for `pytest_report_header`.

    Args:
        settings: of the run.
        rootdir: paths below it are shown relative to it.
    """

    def shown(path: Path) -> str:
        relative = os.path.relpath(path, rootdir)
        return str(path) if relative.startswith(os.path.join("..", "..", "..")) else relative

    target = settings.target
    at = f" at {target.url}" if target.url else ""
    data = "sample (bundled, not SPEED-Bench)" if settings.data is None else shown(settings.data)
    lines = [f"speedbench: {target_line(target)}{at}; target {target.name}", f"speedbench: data: {data}"]
    if settings.against is not None:
        lines.append(
            f"speedbench: against {settings.against.target.name}: {target_line(settings.against.target)}"
        )
    else:
        path = settings.baseline_path
        state = "" if path.exists() else " (not there yet)"
        lines.append(f"speedbench: baselines: {shown(path)}{state}{', to be saved' if settings.save else ''}")
    return lines
