"""One frozen object out of the command line, `speedbench.yaml` and ini; says where each value came from."""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytest_speedbench.catalogue import DEFAULT_TOLERANCES
from pytest_speedbench.cells import Cell, Narrowing
from pytest_speedbench.errors import SettingsError
from pytest_speedbench.settings.methods import Method, Offers
from pytest_speedbench.settings.options import BY_FIELD, PATHS, TARGETS_FILE, Option
from pytest_speedbench.settings.target import Sampling, Target, is_local

DESCRIBES_TARGET = (
    "engine",
    "model",
    "draft_model",
    "method",
    "draft_length",
    "url",
    "engine_python",
    "engine_arg",
    "env",
    "hardware",
    "engine_timeout",
)
"""On the command line these speak of the target alone, not of the one it is compared with."""
DEFAULT_MAX_ROUNDS = 9


@dataclass(frozen=True)
class Settings:
    """Everything a run was told, checked. Paths are absolute."""

    target: Target
    against: Settings | None
    """What to compare with instead of a baseline file: another target, measured in this same run."""
    data: Path | None
    """Folder of prepared SPEED-Bench data; None for the bundled sample."""
    limit: int | None
    """Prompts at most per category."""
    output_length: int
    temperature: float
    ignore_eos: bool
    rounds: int
    """Measured passes over each cell."""
    max_rounds: int
    """Measured passes at most: over cells that are inconclusive, and over those that are saved."""
    warmup: int
    """Requests sent and not measured, before the rounds of each cell."""
    request_timeout_s: float
    """A request that is silent for so long has failed."""
    """Processes that share the streams."""
    baselines: Path
    save: bool
    inconclusive: str
    """`warn` or `fail`."""
    incomparable: str
    """`skip` or `fail`: what a test does whose throughput is stored for other hardware only."""
    tolerances: Mapping[str, float]
    """Allowed relative loss of each gated metric, and under `mean_<metric>` of its mean over categories."""
    alpha: float
    """Chance that a run of an unchanged engine fails at all."""
    degenerate: float
    """Share of requests whose output may repeat itself or break off before a cell is invalid."""
    random_control: bool
    """Whether throughput cells are measured on random tokens too."""
    concurrent_targets: bool
    """Whether the engine that is compared with runs at the same time."""
    json: Path | None
    report: Path | None

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen, as engines take it."""
        return Sampling(self.output_length, self.temperature, self.ignore_eos)

    def tolerance(self, metric: str, cell: Cell) -> float:
        """Allowed relative loss of a metric of a cell."""
        return self.tolerances[f"mean_{metric}" if cell.is_mean else metric]

    @property
    def baseline_path(self) -> Path:
        """The target's baseline file."""
        return self.baselines / f"{self.target.name}.yaml"


Lookup = Callable[[Option], tuple[Any, str, Path] | None]
"""Raw value of an option in one source, the words that name the place, and what its paths are relative to."""


class _Reader:
    """Looks options up in sources, in order of precedence, and remembers where each came from."""

    def __init__(self, *lookups: Lookup) -> None:
        self._lookups = lookups
        self._places: dict[str, str] = {}

    def __call__(self, field: str) -> Any:
        option = BY_FIELD[field]
        for lookup in self._lookups:
            found = lookup(option)
            if found is None:
                continue
            raw, place, base = found
            self._places[field] = place
            value = _parse(option, raw, place)
            if field in PATHS and (field != "engine_python" or "/" in value):
                # not resolve(): a virtual environment's python is a link that must stay one
                return Path(os.path.abspath(base / Path(value).expanduser()))
            return value
        return option.default

    def named(self, field: str) -> str:
        """Where a value came from, as a person would find it; its option where it is the default."""
        return self._places.get(field, BY_FIELD[field].option)


def _parse(option: Option, raw: Any, place: str) -> Any:
    if not (option.repeatable or option.comma_list):
        return _parse_one(option, raw, place)
    parsed = [
        _parse_one(option, value, place) for value in (raw if isinstance(raw, (list, tuple)) else [raw])
    ]
    return tuple(parsed) if option.repeatable else tuple(dict.fromkeys(chain.from_iterable(parsed)))


def _parse_one(option: Option, raw: Any, place: str) -> Any:
    text = str(raw).strip()
    try:
        if not text or isinstance(raw, (list, tuple)):
            raise ValueError(text)
        return option.parse(text)
    except (ValueError, KeyError):
        raise SettingsError(f"{place}={' '.join(text.split())}: allowed is {option.allowed}") from None


def read_narrowing(command_line: Lookup, ini: Lookup) -> Narrowing:
    """The part of the grid to keep.

    Raises:
        SettingsError: a value that is not allowed.
    """
    read = _Reader(command_line, ini)
    return Narrowing(read("split"), read("category"), read("batch_size"))


def read_data_options(command_line: Lookup, ini: Lookup) -> tuple[Path | None, int | None]:
    """The folder of prepared data and the limit per category, for a run without an engine.

    Raises:
        SettingsError: a value that is not allowed.
    """
    read = _Reader(command_line, ini)
    return read("data"), read("limit")


def read(rootdir: Path, command_line: Lookup, ini: Lookup, offers: Offers) -> Settings | None:
    """Settings of this run, or None where no engine is named.

    Args:
        rootdir: pytest's rootdir, where `speedbench.yaml` lies.
        command_line: looks an option up on the command line.
        ini: looks an option's ini twin up.
        offers: looks up what an engine brings, by its name.

    Raises:
        SettingsError: a value that is not allowed, an engine that is not installed, or values that do not go together.
    """
    outer = _Reader(command_line, ini)
    for field in BY_FIELD:
        outer(field)  # a bad value is refused also where it is not needed
    name = outer("target")
    if name is None and outer("engine") is None:
        for option in map(BY_FIELD.__getitem__, ("against", "save", "url", "model")):
            if command_line(option) is not None:
                raise SettingsError(
                    f"{option.option} needs an engine: add --speedbench-engine=NAME or --speedbench-target=NAME"
                )
        return None
    against = outer("against")
    other = None
    if against is not None:
        if against == name:
            raise SettingsError(f"--speedbench-against={against}: is the target itself; name another one")

        def conditions_only(option: Option) -> tuple[Any, str, Path] | None:
            return None if option.field in DESCRIBES_TARGET else command_line(option)

        other = _read_target(rootdir, against, conditions_only, ini, offers, main=False)
    return _read_target(rootdir, name, command_line, ini, offers, against=other)


def _read_target(
    rootdir: Path,
    name: str | None,
    command_line: Lookup,
    ini: Lookup,
    offers: Offers,
    *,
    main: bool = True,
    against: Settings | None = None,
) -> Settings:
    lookups = [command_line]
    if name is not None:
        from pytest_speedbench.settings.targets_file import load_target

        values = load_target(rootdir / TARGETS_FILE, name, BY_FIELD["target" if main else "against"].option)

        def from_file(option: Option) -> tuple[Any, str, Path] | None:
            if option.key is None or option.key not in values:
                return None
            return values[option.key], f"{TARGETS_FILE}, target {name}: {option.key}", rootdir

        lookups.append(from_file)
    read = _Reader(*lookups, ini)

    engine = read("engine")
    if engine is None:
        raise SettingsError(
            f"{TARGETS_FILE}, target {name}: names no engine; add `engine:` or --speedbench-engine=NAME"
        )
    offer = offers(engine)
    chosen = read("method")
    method = offer.method(chosen or offer.default_method, read.named("method"))
    draft_model = read("draft_model")
    if draft_model is not None and method.draft_model == "none":
        takes = [each.name for each in offer.methods.values() if each.draft_model != "none"]
        raise SettingsError(
            f"{read.named('draft_model')}={draft_model}: method {method} of engine {engine} has no draft model; "
            + (f"allowed with --speedbench-method={', '.join(takes)}" if takes else "leave it out")
        )
    draft_length = read("draft_length") if method.has_draft_length else 0
    model = read("model")
    engine_python, url = read("engine_python"), read("url")
    target = Target(
        name=name or default_target_name(engine, model, method, draft_length, url),
        engine=engine,
        method=method.name,
        draft_length=draft_length,
        model=model,
        draft_model=draft_model,
        engine_args=read("engine_arg") or (),
        environment=dict(read("env") or ()),
        engine_python=str(engine_python) if engine_python else None,
        engine_timeout_s=read("engine_timeout"),
        url=url,
        hardware=read("hardware"),
    )
    for field, given, what in (
        ("engine_arg", target.engine_args, "launch arguments"),
        ("env", target.environment, "environment variables"),
    ):
        if target.url and given:
            raise SettingsError(
                f"{read.named(field)}: a running server ({target.url}) takes no {what}; drop one of the two"
            )
    if target.hardware and not target.url:
        raise SettingsError(
            f"{read.named('hardware')}={target.hardware}: only for a server that already runs (--speedbench-url); "
            "a launched engine's hardware is found out"
        )
    data = read("data")
    rounds, max_rounds = read("rounds"), read("max_rounds")
    if max_rounds is not None and max_rounds < rounds:
        raise SettingsError(
            f"{read.named('max_rounds')}={max_rounds}: fewer than the {rounds} of {read.named('rounds')}, which are "
            "measured of every cell"
        )
    return Settings(
        target=target,
        against=against,
        data=data,
        limit=read("limit"),
        output_length=read("output_length"),
        temperature=read("temperature"),
        ignore_eos=read("ignore_eos"),
        rounds=rounds,
        max_rounds=max_rounds or max(rounds, DEFAULT_MAX_ROUNDS),
        warmup=read("warmup"),
        request_timeout_s=read("request_timeout"),
        baselines=_under(rootdir, read("baselines")),
        save=read("save"),
        inconclusive=read("inconclusive"),
        incomparable=read("incomparable"),
        tolerances={**DEFAULT_TOLERANCES, **dict(read("tolerance") or ())},
        alpha=read("alpha"),
        degenerate=read("degenerate"),
        random_control=read("random_control"),
        concurrent_targets=read("concurrent_targets"),
        json=read("json"),
        report=read("report"),
    )


def _under(rootdir: Path, path: Path | str) -> Path:
    return rootdir / path


def default_target_name(
    engine: str, model: str | None, method: Method, draft_length: int, url: str | None = None
) -> str:
    """Name of a target given on the command line: `vllm-llama-3.3-70b-instruct-eagle3-k3`.

    Launch arguments and the draft model are not part of it: a change in them is what a gate judges. The address of a
    server on another machine is, and that of an endpoint of which nothing else is known.
    """
    parts = [engine]
    if url is not None and (method.drafts == "unknown" or not is_local(url)):
        parts.append(re.sub(r"[^a-z0-9.]+", "-", urlsplit(url).netloc.rpartition("@")[2].lower()).strip("-."))
    if model:
        parts.append(re.sub(r"[^a-z0-9.]+", "-", Path(model).name.lower()).strip("-."))
    parts.append(method.name)
    if draft_length:
        parts.append(f"k{draft_length}")
    return "-".join(part for part in parts if part)
