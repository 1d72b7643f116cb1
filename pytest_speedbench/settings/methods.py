"""The methods of speculative decoding, in one table: what is known about each, for every engine that has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pytest_speedbench.errors import SettingsError


@dataclass(frozen=True)
class Method:
    """How tokens are drafted. An engine may bring one of its own, or a row of the table with other properties."""

    name: str
    """As in `--speedbench-method`."""
    drafts: Literal["always", "sometimes", "never", "unknown"] = "sometimes"
    """Which decode steps have a draft. By default nothing is assumed."""
    draft_model: Literal["needed", "optional", "none"] = "none"
    has_draft_length: bool = True
    """Whether the number of tokens drafted per step is the user's to choose."""

    def __str__(self) -> str:
        return self.name


NONE = Method("none", drafts="never", has_draft_length=False)
UNKNOWN = Method("unknown", drafts="unknown", has_draft_length=False)
"""Of an endpoint that does not say how it drafts, if it does."""
METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        NONE,
        Method("ngram"),
        Method("suffix"),
        Method("draft_model", drafts="always", draft_model="needed"),
        Method("eagle", drafts="always", draft_model="needed"),
        Method("eagle3", drafts="always", draft_model="needed"),
        Method("mtp", drafts="always", draft_model="optional"),
        Method("dflash", drafts="always", draft_model="needed"),
        UNKNOWN,
    )
}


def method_of(method: Method | str) -> Method:
    """What is known about a method; of a name that is not in the table, nothing but the name."""
    return METHODS.get(method, Method(method)) if isinstance(method, str) else method


@dataclass(frozen=True)
class Offer:
    """What an engine brings to the settings of a target."""

    engine: str
    """As in `--speedbench-engine`."""
    methods: Mapping[str, Method]
    """By name."""
    default_method: str
    """Where a target names none."""

    @classmethod
    def of(cls, engine: str, methods: Iterable[Method | str], default_method: str) -> Offer:
        """An engine's methods, those of the table by name alone."""
        return cls(engine, {method.name: method for method in map(method_of, methods)}, default_method)

    def method(self, name: str, where: str = "--speedbench-method") -> Method:
        """The method of a name.

        Args:
            name: what is asked for.
            where: the option that asks, as a person would find it.

        Raises:
            SettingsError: the engine does not have it.
        """
        if name not in self.methods:
            raise SettingsError(f"{where}={name}: engine {self.engine} has {', '.join(sorted(self.methods))}")
        return self.methods[name]


Offers = Callable[[str], Offer]
"""What the engine of a name brings; raises `SettingsError` where there is no such engine."""
