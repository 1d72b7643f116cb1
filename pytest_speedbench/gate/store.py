"""Baseline files: read and checked, written so that a reviewer can read them and no fault can damage them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_speedbench import files
from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import BaselineError
from pytest_speedbench.files import YamlFileError, write_whole
from pytest_speedbench.gate.baseline import (
    AcceptanceCell,
    AcceptancePrompt,
    Baseline,
    Conditions,
    ThroughputCell,
    ThroughputPrompt,
    rounded,
)
from pytest_speedbench.metrics.measurement import RoundFigures
from pytest_speedbench.speed_bench import categories_of

if TYPE_CHECKING:
    from typing import TypeAlias

    Document: TypeAlias = dict[str, Any]

SCHEMA = Path(__file__).with_name("baseline.schema.json")
SCHEMA_VERSION = 1

_ROWS = ("rounds", "prompts")
"""Lists of a cell: one line for each entry."""
_CURE = "restore it from version control, or delete it and write it anew with --speedbench-save"
_PLAIN_KEY = re.compile(r"[a-z][a-z0-9]*[_-][a-z0-9_-]*[a-z0-9]")
"""Keys that need no quotes: none of YAML's words for true, false and null has a hyphen or an underscore."""
_FIELDS = frozenset(
    item.name
    for kind in (
        Baseline,
        Conditions,
        Cell,
        AcceptanceCell,
        ThroughputCell,
        AcceptancePrompt,
        RoundFigures,
        ThroughputPrompt,
    )
    for item in fields(kind)
)


def load(path: Path) -> Baseline | None:
    """Read a baseline file, checked against the JSON Schema of this package.

    Args:
        path: `<baselines>/<target>.yaml`.

    Returns:
        The baseline, or None where there is no file.

    Raises:
        BaselineError: unreadable, not YAML, of a newer schema, or not fitting it; one line that names the place.
    """
    if not os.path.lexists(path):
        return None
    try:
        document = files.load(path)
    except YamlFileError as error:
        raise BaselineError(f"baseline {_shortened(str(error))}; {_CURE}") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if type(version) is int and version > SCHEMA_VERSION:
        raise BaselineError(
            f"baseline {path}: schema_version {version} was written by a newer pytest-speedbench "
            f"(this one knows {SCHEMA_VERSION}); upgrade pytest-speedbench"
        )
    try:
        _check(document, path)
        return _baseline(document)
    except (YamlFileError, BaselineError, RecursionError) as error:
        where = "" if isinstance(error, YamlFileError) else f"{path}: "
        raise BaselineError(f"baseline {where}{_shortened(str(error))}; {_CURE}") from None


def save(path: Path, baseline: Baseline) -> None:
    """Write a baseline file: all of it, or nothing.

    Args:
        path: `<baselines>/<target>.yaml`.
        baseline: what to write, numbers rounded as `merge` leaves them.

    Raises:
        BaselineError: it cannot be written, or is no valid baseline; an old file is then as it was.
    """
    document = _document(baseline)
    try:
        _check(document, path)
        _baseline(document)
    except (YamlFileError, BaselineError) as error:
        raise BaselineError(f"baseline not written: {_shortened(str(error))}") from None
    try:
        write_whole(path, text_of(baseline))
    except OSError as error:
        raise BaselineError(
            f"baseline {path}: cannot be written: {error.strerror or error}; what was there is unchanged"
        ) from None


def text_of(baseline: Baseline) -> str:
    """The file's text: one line per number, and one line per prompt. Equal baselines give equal text."""
    return "\n".join(_lines(_document(baseline))) + "\n"


def _check(document: Any, path: Path) -> None:
    files.check(document, SCHEMA, path)
    for place, number in _numbers(document, ()):
        if not math.isfinite(number):
            raise YamlFileError(f"{path}: {'.'.join(place)}: {number} is no number to compare with")


def _numbers(node: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(node, float):
        yield place, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _numbers(value, (*place, str(key)))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _numbers(value, (*place, str(index)))


def _baseline(document: Document) -> Baseline:
    """A checked document as data.

    Raises:
        BaselineError: what a schema cannot say: ids that do not agree, runs that are not there.
    """
    runs = {name: _conditions(run) for name, run in document["runs"].items()}
    acceptance = {}
    for key, entry in document["acceptance"].items():
        cell = _cell(key, entry, runs, f"acceptance.{key}")
        acceptance[key] = AcceptanceCell(
            cell=cell,
            run=entry["run"],
            acceptance_length=float(entry["acceptance_length"]),
            drafted_acceptance_length=_float(entry.get("drafted_acceptance_length")),
            conditional_acceptance_rate=tuple(map(float, entry.get("conditional_acceptance_rate", ()))),
            prompt_tokens=int(entry["prompt_tokens"]),
            round_acceptance_length=tuple(map(float, entry["round_acceptance_length"])),
            prompts=tuple(_acceptance_prompt(prompt) for prompt in entry["prompts"]),
        )
    throughput: dict[str, dict[str, ThroughputCell]] = {}
    for hardware, cells in document["throughput"].items():
        throughput[hardware] = {}
        for key, entry in cells.items():
            cell = _cell(key, entry, runs, f"throughput.{hardware}.{key}")
            throughput[hardware][key] = ThroughputCell(
                cell=cell,
                run=entry["run"],
                output_tps=float(entry["output_tps"]),
                user_tps=_float(entry.get("user_tps")),
                step_latency_s=_float(entry.get("step_latency_s")),
                speedup=_float(entry.get("speedup")),
                rounds=tuple(_round(figures) for figures in entry["rounds"]),
                prompts=tuple(
                    ThroughputPrompt(
                        prompt["id"], prompt["digest"], int(prompt["requests"]), int(prompt["tokens"])
                    )
                    for prompt in entry["prompts"]
                ),
            )
    return Baseline(document["target"], runs, acceptance, throughput)


def _conditions(entry: Document) -> Conditions:
    values = {**entry, "engine_args": tuple(entry.get("engine_args", ()))}
    for name in ("draft_length", "seed", "output_length", "rounds"):
        if name in values:
            values[name] = int(values[name])
    return Conditions(**{**values, "temperature": float(entry["temperature"])})


def _cell(key: str, entry: Document, runs: Mapping[str, Conditions], place: str) -> Cell:
    cell = Cell(entry["split"], entry["category"], int(entry["batch_size"]))
    if cell.category not in categories_of(cell.split):
        raise BaselineError(f"{place}.category: {cell.split} has no category {cell.category!r}")
    if cell.id != key:
        raise BaselineError(f"{place}: holds split, category and batch_size of {cell.id}")
    if entry["run"] not in runs:
        raise BaselineError(f"{place}.run: {entry['run']!r} is not one of `runs`")
    ids = [prompt["id"] for prompt in entry["prompts"]]
    if len(set(ids)) < len(ids):
        twice = next(name for index, name in enumerate(ids) if name in ids[:index])
        raise BaselineError(f"{place}.prompts: {twice!r} is there twice")
    return cell


def _round(entry: Document) -> RoundFigures:
    return RoundFigures(**{item.name: _float(entry.get(item.name)) for item in fields(RoundFigures)})


def _acceptance_prompt(entry: Document) -> AcceptancePrompt:
    steps, drafted, accepted = entry.get("steps"), entry.get("drafted"), entry.get("accepted")
    return AcceptancePrompt(
        entry["id"],
        entry["digest"],
        int(entry["requests"]),
        int(entry["tokens"]),
        None if steps is None else int(steps),
        None if drafted is None else int(drafted),
        None if accepted is None else tuple(map(int, accepted)),
    )


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _document(baseline: Baseline) -> Document:
    return {
        "schema_version": SCHEMA_VERSION,
        "target": baseline.target,
        "runs": {name: _entry(run) for name, run in baseline.runs.items()},
        "acceptance": {key: _cell_entry(cell) for key, cell in baseline.acceptance.items()},
        "throughput": {
            hardware: {key: _cell_entry(cell) for key, cell in cells.items()}
            for hardware, cells in baseline.throughput.items()
        },
    }


def _cell_entry(cell: AcceptanceCell | ThroughputCell) -> Document:
    rows = {
        name: [_known(_entry(row)) for row in getattr(cell, name)] for name in _ROWS if hasattr(cell, name)
    }
    return {"run": cell.run, **asdict(cell.cell), **_known(_entry(cell, "cell", "run", *_ROWS)), **rows}


def _known(entry: Document) -> Document:
    return {name: value for name, value in entry.items() if value is not None}


def _entry(data: Any, *but: str) -> Document:
    """The fields of a dataclass, tuples as lists."""
    values = {item.name: getattr(data, item.name) for item in fields(data) if item.name not in but}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _lines(document: Document) -> Iterator[str]:
    """Block style down to the numbers of a cell; prompts and lists in flow style, one line each."""
    yield "# Baseline of pytest-speedbench. Written, and to be updated, with `pytest ... --speedbench-save`."
    yield "# acceptance compares across machines; throughput only on the hardware it is filed under."
    for key, value in document.items():
        yield from _block(key, value, "")


def _block(key: str, value: Any, indent: str) -> Iterator[str]:
    start = f"{indent}{_key(key)}:"
    if isinstance(value, dict) and value:
        yield start
        for inner, item in value.items():
            yield from _block(inner, item, indent + "  ")
    elif key in _ROWS and isinstance(value, list) and value:
        yield start
        for row in value:
            yield f"{indent}- {_flow(row)}"
    else:
        yield f"{start} {_flow(value)}"


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _number(value)
    return _quoted(value)


def _number(value: float) -> str:
    """Six significant digits, with the point and the sign that YAML 1.1 wants in a number with an exponent."""
    mantissa, exponent, power = repr(rounded(value)).partition("e")
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{power}" if exponent else mantissa


def _key(key: str) -> str:
    return key if _PLAIN_KEY.fullmatch(key) or key in _FIELDS else _quoted(key)


def _quoted(text: str) -> str:
    """Always quoted: a digest such as 12345678 or 0x1f is text, and so is a model called `no`."""
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08X}"


def _shortened(message: str, limit: int = 300) -> str:
    """One line, without a whole document quoted in it."""
    line = " ".join(message.split())
    return line if len(line) <= limit else f"{line[: limit // 2]} ... {line[-limit // 2 :]}"
