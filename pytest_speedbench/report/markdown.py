"""The results for people: the table and the failures as Markdown, for a pull request or a job summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_speedbench.files import write_whole
from pytest_speedbench.report.by_cause import Block, failed_blocks, headline, notable_blocks
from pytest_speedbench.report.terminal import findings, not_made, notices, table
from pytest_speedbench.report.wording import counted, data_line, target_line

if TYPE_CHECKING:
    from pytest_speedbench.run.results import RunResult

TEXTS_AT_MOST = 15_000
"""Characters of failures in full, and as many of notices: GitHub takes a comment of 65,536."""
ROWS_AT_MOST = 100


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
    first = headline(result)
    lines = [
        f"## {result.target.name}",
        "",
        *([f"**{first}**", ""] if first else []),
        f"{target_line(result.target)}, version {conditions.engine_version or 'not known'}, on {hardware}. "
        f"{data_line(conditions)[:1].upper()}{data_line(conditions)[1:]}, output length {conditions.output_length}, "
        f"temperature {conditions.temperature:g}. pytest-speedbench {conditions.plugin_version}, {conditions.date}.",
        "",
        "```text",
        *(line for line, _ in table(result.cells, saving=result.saving)),
        "```",
        "",
        *(f"- {finding}" for finding, _ in findings(result)),
        *(f"- {finding}" for finding in not_made(result)),
    ]
    lines += _what_failed(result)
    noticed = notices(result)
    if noticed:
        lines += ["", "### What to look at", *_tables(notable_blocks(result)), *_folded(noticed)]
    lines += [f"\n{message}" for message in (*result.warnings, *result.messages)]
    return "\n".join(lines) + "\n"


def _what_failed(result: RunResult) -> list[str]:
    """A table for each cause, then what the tests themselves show, folded."""
    blocks = failed_blocks(result)
    if not blocks:
        return []
    known = {each.cell: each for each in result.cells}
    worst_first = dict.fromkeys([row.cell for block in blocks for row in block.rows] + list(known))
    # those that explain a cause come before those that refer to them
    explaining_first = sorted(worst_first, key=lambda cell: not known[cell].explained)
    texts = [text for cell in explaining_first for text in known[cell].failures.values()]
    return ["", "### What failed", *_tables(blocks), *_folded([*texts, *result.failures.values()])]


def _tables(blocks: Sequence[Block]) -> list[str]:
    """A table of cells for each block, and below it what they have in common."""
    lines = []
    for block in blocks:
        lines += ["", f"**{block.title}**"]
        if block.rows:
            lines += ["", "| cell | metric | baseline -> value | change | 95 % CI |", "|---|---|---|---|---|"]
            lines += [
                f"| {row.cell.id} | {row.metric} | {row.values} | {row.change} | {row.interval} |"
                for row in block.rows[:ROWS_AT_MOST]
            ]
            left_out = len(block.rows) - ROWS_AT_MOST
            lines += [f"\nand {left_out} more; the results file lists them"] if left_out > 0 else []
        lines += [f"\n{paragraph}" for paragraph in block.paragraphs]
    return lines


def _folded(texts: Sequence[str]) -> list[str]:
    """Texts that a reader unfolds, as many as a comment on a pull request has room for."""
    distinct = list(dict.fromkeys(texts))
    shown: list[str] = []
    for text in distinct:
        if sum(map(len, shown)) + len(text) > TEXTS_AT_MOST:
            break
        shown.append(text)
    lines = ["", f"<details><summary>{counted(len(distinct), 'text')} in full</summary>"]
    for text in shown:
        lines += ["", "```text", text, "```"]
    if len(shown) < len(distinct):
        lines += ["", f"and {len(distinct) - len(shown)} more, in the output of the run"]
    return [*lines, "", "</details>"]
