"""The results for people: the table and the failures as Markdown, for a pull request or a job summary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_speedbench.files import write_whole
from pytest_speedbench.report.terminal import findings, notices, table
from pytest_speedbench.report.wording import data_line, target_line

if TYPE_CHECKING:
    from pytest_speedbench.run.results import RunResult


def write(path: Path, result: RunResult) -> None:
    """Write a run's results.

    Args:
        path: replaced as a whole; its folder is made.
        result: of the run.

    Raises:
        OSError: the file cannot be written.
    """
    write_whole(path, text(result))


def text(result: RunResult) -> str:
    """The document."""
    conditions = result.conditions
    hardware = result.hardware.key if result.hardware else "hardware not known"
    lines = [
        f"## {result.target.name}",
        "",
        f"{target_line(result.target)}, version {conditions.engine_version or 'not known'}, on {hardware}. "
        f"{data_line(conditions)[:1].upper()}{data_line(conditions)[1:]}, output length {conditions.output_length}, "
        f"temperature {conditions.temperature:g}. pytest-speedbench {conditions.plugin_version}, {conditions.date}.",
        "",
        "```text",
        *(line for line, _ in table(result.cells, saving=result.saving)),
        "```",
        "",
        *(f"- {finding}" for finding, _ in findings(result)),
    ]
    failures = [
        *(text for known in result.cells for text in dict.fromkeys(known.failures.values())),
        *result.failures.values(),
    ]
    for title, texts in (("What failed", failures), ("What to look at", notices(result))):
        if texts:
            lines += ["", f"### {title}"]
        for each in texts:
            lines += ["", "```text", each, "```"]
    lines += [f"\n{message}" for message in (*result.warnings, *result.messages)]
    return "\n".join(lines) + "\n"
