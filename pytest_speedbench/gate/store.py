"""Baseline files: read and checked, written so that a reviewer can read them and no fault can damage them.

A baseline is two files. `<target>.yaml` is for reviewers: how it was measured, and a few lines per cell.
`<target>.<digest>.prompts.json` is generated: one line per prompt, which a later run is paired with. The digest of its
content is in its name and in the YAML, so that the two can neither be mixed up nor be half replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from pytest_speedbench import files
from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import BaselineError
from pytest_speedbench.files import YamlFileError, write_whole
from pytest_speedbench.gate.baseline import (
    Baseline,
    Conditions,
    Merged,
    Reference,
    merge,
    stored_measurement,
)
from pytest_speedbench.gate.schema_1 import converted
from pytest_speedbench.metrics.measurement import Measurement, PromptTally, RoundFigures
from pytest_speedbench.speed_bench import SPLITS, categories_of

if TYPE_CHECKING:
    from typing import TypeAlias

    Document: TypeAlias = dict[str, Any]

SCHEMA = Path(__file__).with_name("baseline.schema.json")
SCHEMA_VERSION = 2

_CURE = "restore it from version control, or delete it and write it anew with --speedbench-save"
_HEADER = """\
# Baseline of pytest-speedbench. Written, and to be updated, with `pytest ... --speedbench-save`.
# The prompts of every cell are in the generated file beside it that prompts_sha256 names.
"""
_DIGITS = 12
"""Digits of the digest in the name of the file of prompts."""
_NEVER_LEFT_OUT = "acceptance_length"
"""The figure whose column is there even if no round has it, so that the number of rounds is."""
_CELL_ID = re.compile(r"([a-z0-9_]+)-([a-z0-9_]+)-bs([1-9][0-9]{0,8})")
_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Row(msgspec.Struct, frozen=True, array_like=True):
    """One prompt, summed over its requests: a line of the file of prompts."""

    id: str
    digest: str
    requests: Annotated[int, msgspec.Meta(ge=1)]
    tokens: _Count
    steps: _Count | None
    drafted: _Count | None
    accepted: tuple[_Count, ...] | None
    steps_exact: bool


class _Prompts(msgspec.Struct, frozen=True):
    """The file of prompts."""

    columns: list[str]
    cells: dict[str, dict[str, dict[str, list[_Row]]]]
    """By hardware key, cell id and session: both halves of a cell that were saved together share their prompts."""


def load(path: Path) -> Baseline | None:
    """Read a baseline, checked against the JSON Schema of this package.

    Args:
        path: `<baselines>/<target>.yaml`.

    Returns:
        The baseline, or None where there is no file.

    Raises:
        BaselineError: unreadable, not YAML, of a newer schema, not fitting it, or without its file of prompts; one line
            that names the place.
    """
    if not os.path.lexists(path):
        return None
    document = _read(path)
    if document["schema_version"] == SCHEMA_VERSION and not _prompts_path(path, document).exists():
        document = _read(
            path
        )  # a save that ran meanwhile took the old prompts away after the YAML named new ones
    try:
        if document["schema_version"] == SCHEMA_VERSION:
            return _baseline(document, _prompts_in(_prompts_path(path, document), document["prompts_sha256"]))
        document, cells = converted(document)
        _check(document, path)
        return _baseline(document, _prompts_of(json.dumps(cells).encode(), path))
    except (YamlFileError, BaselineError, RecursionError) as error:
        where = "" if isinstance(error, YamlFileError) else f"{path}: "
        raise BaselineError(f"baseline {where}{_shortened(str(error))}; {_CURE}") from None


def add(
    path: Path,
    target: str,
    measurements: Sequence[Measurement],
    conditions: Conditions,
    hardware_key: str,
) -> Merged:
    """Merge a run's measurements into a baseline file; another run that saves meanwhile waits for its turn.

    Args:
        path: `<baselines>/<target>.yaml`.
        target: name of the target.
        measurements: of one run.
        conditions: of that run.
        hardware_key: `Hardware.key` of what it ran on.

    Returns:
        What is stored now, and what was left out.

    Raises:
        BaselineError: as `load`, `baseline.merge` and `save`; the files are then as they were.
    """
    with _exclusive(path):
        merged = merge(target, load(path), measurements, conditions, hardware_key)
        _write(path, merged.baseline)
    return merged


def save(path: Path, baseline: Baseline) -> None:
    """Write a baseline's two files: both of them, or nothing.

    The file of prompts has a name of its own for each content and comes first; the YAML takes the old one's place in
    one step, and what it named before is removed last. Wherever that ends, the YAML and what it names are whole.

    Args:
        path: `<baselines>/<target>.yaml`.
        baseline: what to write, numbers rounded as `merge` leaves them.

    Raises:
        BaselineError: it cannot be written, or is not a valid baseline; the old files are then as they were.
    """
    with _exclusive(path):
        _write(path, baseline)


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Keep other runs from saving in the same folder."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(Path(os.path.realpath(path)).parent))
        except OSError as error:
            raise _unwritable(path, error) from None
        yield


def _write(path: Path, baseline: Baseline) -> None:
    yaml_text, prompts_text = texts_of(baseline)
    document = _document(baseline, prompts_text)
    try:
        _check(document, path)
        _baseline(document, _prompts_of(prompts_text.encode(), path))
    except (YamlFileError, BaselineError) as error:
        raise BaselineError(f"baseline not written: {_shortened(str(error))}") from None
    prompts_path = _prompts_path(path, document)
    known = prompts_path.exists()
    try:
        write_whole(prompts_path, prompts_text)
        write_whole(path, yaml_text)
    except OSError as error:
        if not known:
            prompts_path.unlink(missing_ok=True)
        raise _unwritable(path, error) from None
    for other in _all_prompts(path):
        if other != prompts_path:
            other.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> BaselineError:
    return BaselineError(
        f"baseline {path}: cannot be written: {error.strerror or error}; what was there is unchanged"
    )


def texts_of(baseline: Baseline) -> tuple[str, str]:
    """The text of the YAML and of the file of prompts. Equal baselines give equal texts."""
    prompts_text = _prompts_text(baseline)
    return _HEADER + _yaml(_document(baseline, prompts_text)), prompts_text


# Reading


def _read(path: Path) -> Document:
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
        if version != 1:
            _check(document, path)
        return dict(document)
    except (YamlFileError, RecursionError) as error:
        raise BaselineError(f"baseline {_shortened(str(error))}; {_CURE}") from None


def _check(document: Any, path: Path) -> None:
    files.check(document, SCHEMA, path)
    for place, number in _numbers(document, ()):
        if not math.isfinite(number):
            raise YamlFileError(f"{path}: {'.'.join(place)}: {number} is not a number to compare with")


def _numbers(node: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(node, float):
        yield place, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _numbers(value, (*place, str(key)))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _numbers(value, (*place, str(index)))


def _prompts_path(path: Path, document: Document) -> Path:
    """Where the prompts of a baseline are: beside the YAML itself, where `path` is a link."""
    real = Path(os.path.realpath(path))
    return real.with_name(f"{real.stem}.{document['prompts_sha256'][:_DIGITS]}.prompts.json")


def _all_prompts(path: Path) -> list[Path]:
    """Every file of prompts that a save of this baseline has left."""
    real = Path(os.path.realpath(path))
    name = re.compile(rf"{re.escape(real.stem)}\.[0-9a-f]{{{_DIGITS}}}\.prompts\.json")
    return [each for each in real.parent.iterdir() if name.fullmatch(each.name)]


def _prompts_in(path: Path, digest: str) -> _Prompts:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BaselineError(
            f"its prompts are in {path.name}, which cannot be read: {error.strerror}; commit both files together"
        ) from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise BaselineError(
            f"its prompts are in {path.name}, whose content is not the one that prompts_sha256 names"
        )
    return _prompts_of(content, path)


def _prompts_of(content: bytes, path: Path) -> _Prompts:
    try:
        prompts = msgspec.json.decode(content, type=_Prompts)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BaselineError(f"its prompts are in {path.name}, which does not hold them: {error}") from None
    if tuple(prompts.columns) != _Row.__struct_fields__:
        raise BaselineError(f"its prompts are in {path.name}, whose columns are {', '.join(prompts.columns)}")
    return prompts


def _baseline(document: Document, prompts: _Prompts) -> Baseline:
    """A checked document, with its prompts, as data.

    Raises:
        BaselineError: what a schema cannot say: cells that do not exist, sessions or prompts that are not there.
    """
    sessions = {name: _conditions(entry, name) for name, entry in document["sessions"].items()}

    def filed(half: str) -> dict[str, dict[str, Reference]]:
        return {
            hardware: {
                key: _reference(entry, key, hardware, sessions, prompts, f"{half}.{hardware}.{key}")
                for key, entry in cells.items()
            }
            for hardware, cells in document[half].items()
        }

    return Baseline(document["target"], filed("acceptance"), filed("throughput"))


def _conditions(entry: Document, name: str) -> Conditions:
    try:
        return msgspec.convert(entry, Conditions)
    except msgspec.ValidationError as error:
        raise BaselineError(f"sessions.{name}: {error}") from None


def _reference(
    entry: Document,
    key: str,
    hardware: str,
    sessions: Mapping[str, Conditions],
    prompts: _Prompts,
    place: str,
) -> Reference:
    session = entry["session"]
    if session not in sessions:
        raise BaselineError(f"{place}.session: {session!r} is not one of `sessions`")
    rows = prompts.cells.get(hardware, {}).get(key, {}).get(session)
    if rows is None or len(rows) != entry.get("prompts", len(rows)):
        raise BaselineError(
            f"{place}: the file of prompts has {len(rows or ())} prompts of {session}, not {entry.get('prompts', 'any')}"
        )
    ids = [row.id for row in rows]
    if len(set(ids)) < len(ids):
        twice = next(name for index, name in enumerate(ids) if name in ids[:index])
        raise BaselineError(f"{place}: prompt {twice!r} is there twice")
    rates = tuple(map(float, entry.get("conditional_acceptance_rate", ())))
    metrics = {name: float(value) for name, value in entry["metrics"].items()}
    measurement = replace(
        stored_measurement(_cell(key, place), metrics, [_tally(row) for row in rows]),
        per_position={"conditional_acceptance_rate": rates} if rates else {},
        rounds=_rounds(entry["rounds"], place),
        prompt_tokens=int(entry.get("prompt_tokens", 0)),
    )
    return Reference(measurement, sessions[session], hardware)


def _tally(row: _Row) -> PromptTally:
    return PromptTally(
        question_id=row.id,
        digest=row.digest,
        requests=row.requests,
        output_tokens=row.tokens,
        steps=row.steps,
        drafted_steps=row.drafted,
        accepted_per_position=row.accepted,
        steps_exact=row.steps_exact,
    )


def _cell(key: str, place: str) -> Cell:
    named = _CELL_ID.fullmatch(key)
    if named is None or named[1] not in SPLITS or named[2] not in categories_of(named[1]):
        raise BaselineError(f"{place}: {key!r} is not a cell of SPEED-Bench")
    return Cell(named[1], named[2], int(named[3]))


def _rounds(columns: Document, place: str) -> tuple[RoundFigures, ...]:
    known = [item.name for item in fields(RoundFigures)]
    unknown = [name for name in columns if name not in known]
    if unknown:
        raise BaselineError(f"{place}.rounds: {', '.join(unknown)} is not a figure of a round")
    numbers = {len(values) for values in columns.values()}
    if len(numbers) > 1:
        raise BaselineError(
            f"{place}.rounds: columns are of {' and '.join(map(str, sorted(numbers)))} rounds"
        )
    return tuple(
        RoundFigures(
            **{
                name: None
                if name not in columns or columns[name][number] is None
                else float(columns[name][number])
                for name in known
            }
        )
        for number in range(max(numbers, default=0))
    )


# Writing


def _document(baseline: Baseline, prompts_text: str) -> Document:
    names = _sessions(baseline)
    return {
        "schema_version": SCHEMA_VERSION,
        "target": baseline.target,
        "prompts_sha256": hashlib.sha256(prompts_text.encode()).hexdigest(),
        "sessions": {
            names[_key(conditions)]: _entry(conditions)
            for conditions in sorted(_all_conditions(baseline), key=lambda each: names[_key(each)])
        },
        **{
            half: {
                hardware: {key: _cell_entry(half, found, names) for key, found in cells.items()}
                for hardware, cells in filed.items()
            }
            for half, filed in (("acceptance", baseline.acceptance), ("throughput", baseline.throughput))
        },
    }


def _all_references(baseline: Baseline) -> list[tuple[str, str, Reference]]:
    """(hardware key, cell id, reference) of both halves."""
    return [
        (hardware, key, found)
        for filed in (baseline.acceptance, baseline.throughput)
        for hardware, cells in filed.items()
        for key, found in cells.items()
    ]


def _all_conditions(baseline: Baseline) -> list[Conditions]:
    """Every conditions that a cell was measured under, once."""
    return list(
        {_key(found.conditions): found.conditions for *_, found in _all_references(baseline)}.values()
    )


def _key(conditions: Conditions) -> str:
    """Equal for equal conditions."""
    return json.dumps(_entry(conditions), sort_keys=True)


def _sessions(baseline: Baseline) -> dict[str, str]:
    """Names of sessions by the key of their conditions: date and digest, so that two branches never give one name to two."""
    names: dict[str, str] = {}
    for conditions in sorted(_all_conditions(baseline), key=_key):
        digest = hashlib.sha256(_key(conditions).encode()).hexdigest()
        digits = next(n for n in range(6, 65) if f"{conditions.date[:10]}-{digest[:n]}" not in names.values())
        names[_key(conditions)] = f"{conditions.date[:10]}-{digest[:digits]}"
    return names


def _entry(conditions: Conditions) -> Document:
    values = {item.name: getattr(conditions, item.name) for item in fields(conditions)}
    return {
        **values,
        "engine_args": list(conditions.engine_args),
        "environment": dict(conditions.environment),
    }


def _cell_entry(half: str, reference: Reference, names: Mapping[str, str]) -> Document:
    measurement = reference.measurement
    rates = measurement.per_position.get("conditional_acceptance_rate", ())
    columns = {
        item.name: [getattr(figures, item.name) for figures in measurement.rounds]
        for item in fields(RoundFigures)
    }
    return {
        "session": names[_key(reference.conditions)],
        "metrics": _Flow(measurement.metrics),
        **({"conditional_acceptance_rate": list(rates)} if rates else {}),
        **(
            {"prompts": len(measurement.prompts), "prompt_tokens": measurement.prompt_tokens}
            if half == "acceptance"
            else {}
        ),
        "rounds": _Flow(
            {
                name: values
                for name, values in columns.items()
                if name == _NEVER_LEFT_OUT or any(value is not None for value in values)
            }
        ),
    }


def _prompts_text(baseline: Baseline) -> str:
    """One line per prompt."""
    names = _sessions(baseline)
    cells: dict[str, dict[str, dict[str, list[str]]]] = {}
    for hardware, key, found in _all_references(baseline):
        of_cell = cells.setdefault(hardware, {}).setdefault(key, {})
        of_cell[names[_key(found.conditions)]] = [_line(tally) for tally in found.measurement.prompts]

    def nested(node: dict[str, Any] | list[str]) -> str:
        if isinstance(node, list):
            return "[\n" + ",\n".join(node) + "\n]" if node else "[]"
        return "{" + ",".join(f"\n{json.dumps(key)}: {nested(node[key])}" for key in sorted(node)) + "}"

    columns = json.dumps(_Row.__struct_fields__)
    return f'{{\n"columns": {columns},\n"cells": {nested(cells)}\n}}\n'


def _line(tally: PromptTally) -> str:
    row = _Row(
        tally.question_id,
        tally.digest,
        tally.requests,
        tally.output_tokens,
        tally.steps,
        tally.drafted_steps,
        tally.accepted_per_position,
        tally.steps_exact,
    )
    return msgspec.json.encode(row).decode()


class _Flow(dict[str, Any]):
    """A mapping that is written on one line."""


def _yaml(document: Document) -> str:
    """Block style, with lists and the figures of a cell on one line each."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Writes lists, empty mappings and `_Flow` in flow style."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def mapping(dumper: Any, data: Any) -> Any:
        return dumper.represent_mapping(
            "tag:yaml.org,2002:map", data.items(), flow_style=isinstance(data, _Flow) or not data
        )

    def sequence(dumper: Any, data: Any) -> Any:
        return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)

    def text_of(dumper: Any, data: Any) -> Any:
        # PyYAML breaks lines at U+0085 in any other style, and reads them back as spaces
        style = None if data.isprintable() else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    Dumper.add_representer(str, text_of)
    Dumper.add_representer(dict, mapping)
    Dumper.add_representer(_Flow, mapping)
    Dumper.add_representer(list, sequence)
    text: str = yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=math.inf)
    return text


def _shortened(message: str, limit: int = 300) -> str:
    """One line, without a whole document quoted in it."""
    line = " ".join(message.split())
    return line if len(line) <= limit else f"{line[: limit // 2]} ... {line[-limit // 2 :]}"
