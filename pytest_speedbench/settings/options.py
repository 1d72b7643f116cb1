"""The table of all options: one row each, from which the command line, ini and `speedbench.yaml` are read."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pytest_speedbench.catalogue import DEFAULT_TOLERANCES
from pytest_speedbench.speed_bench import DOMAINS, ENTROPY_TIERS, MAX_BATCH_SIZE, SPLITS

TARGETS_FILE = "speedbench.yaml"
ENGINE_TIMEOUT_S = REQUEST_TIMEOUT_S = 600.0
TOLERATED = tuple(DEFAULT_TOLERANCES)
"""What has a tolerance: each gated metric of a category and of the mean over categories, and what is compared across hardware."""


class Option:
    """One setting: `--speedbench-<name>`, its ini twin `speedbench_<name>`, and perhaps a key of a target.

    A plain class: what every pytest run imports, used or not, should cost little.

    Args:
        name: as typed after `--speedbench-`.
        help: for `--help`.
        allowed: what may be given, in words: ends the line that refuses a bad value.
        parse: makes the value from its text; raises ValueError or KeyError for what is not allowed.
        default: where nothing is given.
        metavar: in `--help`.
        repeatable: whether it is given once for each value, and values add up.
        comma_list: whether a value holds several, separated by commas; values add up as well.
        number: `int` or `float` where it is one, for the ini twin.
        flag: whether it stands without a value.
        key: under a target of `speedbench.yaml`; None for what does not belong to a target.
        ini: whether it has an ini twin.
    """

    def __init__(
        self,
        name: str,
        help: str,
        allowed: str,
        parse: Callable[[str], Any] = str,
        *,
        default: Any = None,
        metavar: str | None = None,
        repeatable: bool = False,
        comma_list: bool = False,
        number: type[int | float] | None = None,
        flag: bool = False,
        key: str | None = None,
        ini: bool = True,
    ) -> None:
        self.name = name
        self.help = help
        self.allowed = allowed
        self.parse = parse
        self.default = default
        self.metavar = metavar
        self.repeatable = repeatable
        self.comma_list = comma_list
        self.number = number
        self.flag = flag
        self.key = key
        self.ini = ini

    @property
    def option(self) -> str:
        """As typed: `--speedbench-draft-length`."""
        return f"--speedbench-{self.name}"

    @property
    def ini_type(self) -> str:
        """The type of the ini twin, as pytest (8.4 and later) calls it."""
        if self.repeatable or self.comma_list:
            return "linelist"
        return "bool" if self.flag else self.number.__name__ if self.number else "string"

    @property
    def field(self) -> str:
        """As an identifier, and the ini name after `speedbench_`."""
        return self.name.replace("-", "_")


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            raise ValueError(text)
        return value

    return parse


def _number(least: float, most: float = float("inf"), *, above: bool = False) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not least <= value <= most or (above and value == least) or value == float("inf"):
            raise ValueError(text)
        return value

    return parse


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(text)
        return text

    return parse


def _list_of(parse_one: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse(text: str) -> tuple[Any, ...]:
        return tuple(parse_one(part.strip()) for part in text.split(","))

    return parse


def _flag(text: str) -> bool:
    return {
        "true": True,
        "1": True,
        "yes": True,
        "on": True,
        "false": False,
        "0": False,
        "no": False,
        "off": False,
    }[text.strip().lower()]


def _tolerance(text: str) -> tuple[str, float]:
    metric, _, loss = text.partition("=")
    return _one_of(*TOLERATED)(metric.strip()), _number(0, 1, above=True)(loss)


def _variable(text: str) -> tuple[str, str]:
    name, assigned, value = text.partition("=")
    if not assigned or not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise ValueError(text)
    return name, value


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", text):
        raise ValueError(text)
    return text.rstrip("/")


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", text):
        raise ValueError(text)
    return text


_CATEGORIES = (*DOMAINS, *ENTROPY_TIERS)
OPTIONS = (
    Option(
        "engine", "which engine to launch or attach to", "the name of an engine", key="engine", metavar="NAME"
    ),
    Option("target", f"a target of {TARGETS_FILE}", "letters, digits and . _ + -", _name, metavar="NAME"),
    Option("model", "the target model: name or path", "a name or a path", key="model"),
    Option(
        "draft-model", "the drafter: name or path", "a name or a path", key="draft_model", metavar="MODEL"
    ),
    Option(
        "method",
        "how tokens are drafted, such as none, ngram, draft_model, eagle3 or mtp; which ones there are depends on the engine",
        "the name of a method",
        _name,
        key="method",
    ),
    Option(
        "draft-length",
        "tokens drafted per step (default: 3)",
        "a whole number from 1",
        _whole(1),
        number=int,
        default=3,
        key="draft_length",
        metavar="K",
    ),
    Option(
        "url",
        "measure a server that already runs, and leave it running",
        "http://HOST:PORT",
        _url,
        key="url",
    ),
    Option(
        "engine-python",
        "interpreter that has the engine installed, or llama.cpp's server (default: this one, or the one on PATH)",
        "a path",
        key="engine_python",
        metavar="PATH",
    ),
    Option(
        "engine-arg",
        "one more launch argument for the engine; repeatable",
        "an argument",
        repeatable=True,
        key="engine_args",
        metavar="ARG",
    ),
    Option(
        "env",
        "one more environment variable for the engine; repeatable",
        "NAME=VALUE",
        _variable,
        repeatable=True,
        key="env",
        metavar="NAME=VALUE",
    ),
    Option(
        "hardware",
        "what a server on another machine computes on, such as 'NVIDIA H100 80GB HBM3 x 8', so that its throughput compares",
        "a name",
        key="hardware",
        metavar="NAME",
    ),
    Option(
        "engine-timeout",
        f"seconds that start-up may take (default: {ENGINE_TIMEOUT_S:g})",
        "seconds above 0",
        _number(0, above=True),
        number=float,
        default=ENGINE_TIMEOUT_S,
        key="engine_timeout",
        metavar="S",
    ),
    Option(
        "data",
        "folder of prepared SPEED-Bench data (default: the bundled sample)",
        "a folder",
        key="data",
        metavar="DIR",
    ),
    Option(
        "split",
        "keep only these splits; comma list",
        f"a comma list of {', '.join(SPLITS)}",
        _list_of(_one_of(*SPLITS)),
        comma_list=True,
    ),
    Option(
        "category",
        "keep only these categories; comma list",
        f"a comma list of {', '.join(_CATEGORIES)}",
        _list_of(_one_of(*_CATEGORIES)),
        comma_list=True,
    ),
    Option(
        "batch-size",
        "keep only these batch sizes, or set them for tests that name none; comma list (default: 1,32)",
        f"a comma list of whole numbers from 1 to {MAX_BATCH_SIZE}",
        _list_of(_whole(1, MAX_BATCH_SIZE)),
        comma_list=True,
        metavar="N",
    ),
    Option(
        "limit",
        "prompts at most per category",
        "a whole number from 1",
        _whole(1),
        number=int,
        key="limit",
        metavar="N",
    ),
    Option(
        "output-length",
        "output tokens at most (default: 4096, as SPEED-Bench)",
        "a whole number from 2",
        _whole(2),
        number=int,
        default=4096,
        key="output_length",
        metavar="N",
    ),
    Option(
        "temperature",
        "sampling temperature (default: 0, greedy)",
        "a number from 0",
        _number(0),
        number=float,
        default=0.0,
        key="temperature",
        metavar="T",
    ),
    Option(
        "ignore-eos",
        "generate exactly the output length (default: stop at the end-of-sequence token)",
        "true or false",
        _flag,
        default=False,
        flag=True,
        key="ignore_eos",
    ),
    Option(
        "rounds",
        "measured passes over a cell (default: 3)",
        "a whole number from 1",
        _whole(1),
        number=int,
        default=3,
        key="rounds",
        metavar="N",
    ),
    Option(
        "max-rounds",
        "measured passes at most, for cells that are inconclusive, and for what is saved (default: 9)",
        "a whole number from 1, not below --speedbench-rounds",
        _whole(1),
        number=int,
        key="max_rounds",
        metavar="N",
    ),
    Option(
        "warmup",
        "unmeasured requests before the first round of a cell (default: its batch size)",
        "a whole number from 0",
        _whole(0),
        number=int,
        key="warmup",
        metavar="N",
    ),
    Option(
        "request-timeout",
        f"seconds of silence after which a request has failed (default: {REQUEST_TIMEOUT_S:g})",
        "seconds above 0",
        _number(0, above=True),
        number=float,
        default=REQUEST_TIMEOUT_S,
        key="request_timeout",
        metavar="S",
    ),
    Option(
        "baselines",
        "where baselines are (default: baselines/ under rootdir)",
        "a folder",
        default="baselines",
        metavar="DIR",
    ),
    Option(
        "save",
        "write this run's measurements as the new baselines",
        "nothing",
        _flag,
        default=False,
        flag=True,
        ini=False,
    ),
    Option(
        "tolerance",
        "allowed relative loss of a category, under mean_METRIC of the mean over categories, and under other_hardware_METRIC at "
        "least of either where the baseline is of other hardware; repeatable (default: "
        f"{', '.join(f'{metric}={loss:g}' for metric, loss in DEFAULT_TOLERANCES.items())})",
        f"METRIC=LOSS with METRIC one of {', '.join(TOLERATED)} and 0 < LOSS <= 1",
        _tolerance,
        repeatable=True,
        key="tolerance",
        metavar="METRIC=LOSS",
    ),
    Option(
        "alpha",
        "chance that a run of an unchanged engine fails at all, shared out over its checks (default: 0.01)",
        "a number above 0 and at most 0.5",
        _number(0, 0.5, above=True),
        number=float,
        default=0.01,
        metavar="P",
    ),
    Option(
        "degenerate",
        "share of requests whose output may repeat itself or break off before a cell is invalid (default: 0.1)",
        "a number from 0 to 1",
        _number(0, 1),
        number=float,
        default=0.1,
        key="degenerate",
        metavar="SHARE",
    ),
    Option(
        "inconclusive",
        "what to do where the interval is too wide to tell: warn or fail (default: warn)",
        "warn or fail",
        _one_of("warn", "fail"),
        default="warn",
    ),
    Option(
        "incomparable",
        "what to do where throughput is stored for other hardware only: skip or fail (default: skip)",
        "skip or fail",
        _one_of("skip", "fail"),
        default="skip",
    ),
    Option(
        "against",
        f"compare with this target of {TARGETS_FILE}, measured in this same run, not with a file",
        "letters, digits and . _ + -",
        _name,
        metavar="TARGET",
    ),
    Option(
        "concurrent-targets",
        "with --speedbench-against: both engines run at once (default: one after the other)",
        "true or false",
        _flag,
        default=False,
        flag=True,
    ),
    Option(
        "random-control",
        "also measure prompts of random tokens, and tell how far they overstate the TPS of a throughput split",
        "true or false",
        _flag,
        default=False,
        flag=True,
    ),
    Option("json", "write everything measured and judged, for machines", "a path", metavar="PATH"),
    Option("report", "write the table and the failures as Markdown, for people", "a path", metavar="PATH"),
)
BY_FIELD = {option.field: option for option in OPTIONS}
PATHS = ("data", "baselines", "json", "report", "engine_python")
"""Fields that hold a path: relative ones count from where the value was given."""
