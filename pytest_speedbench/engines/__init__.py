"""Running servers: what an engine is, which ones are installed, and how one is launched and ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_speedbench.errors import SettingsError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from pytest_speedbench.engines.base import Engine
    from pytest_speedbench.settings.methods import Offer

GROUP = "pytest_speedbench.engines"
"""Entry-point group in which a distribution offers an `Engine` class under the name users select."""


def names() -> tuple[str, ...]:
    """Names allowed in `--speedbench-engine`, in alphabetical order."""
    return tuple(_offers())


def load(name: str) -> type[Engine]:
    """Import the engine of a name.

    Args:
        name: as in `--speedbench-engine`.

    Raises:
        SettingsError: no distribution offers the name, or two do, or what is offered cannot be imported or is not an engine.
    """
    where = f"--speedbench-engine={name}"
    offers = _offers()
    if name not in offers:
        raise SettingsError(f"{where}: no such engine; {_what_there_is(name, tuple(offers))}")
    if len(offers[name]) > 1:
        both = " and ".join(f"{_distribution(each)} ({each.value})" for each in offers[name])
        raise SettingsError(f"{where}: offered by {both}; uninstall all but one")
    entry = offers[name][0]
    try:
        engine: Any = entry.load()
    except Exception as error:  # whatever a foreign module raises on import
        raise SettingsError(
            f"{where}: {entry.value} of {_distribution(entry)} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    from pytest_speedbench.engines.base import Engine

    if not (isinstance(engine, type) and issubclass(engine, Engine)):
        raise SettingsError(
            f"{where}: {entry.value} of {_distribution(entry)} is not a subclass of pytest_speedbench.engines.base.Engine"
        )
    if missing := sorted(getattr(engine, "__abstractmethods__", ())):
        raise SettingsError(
            f"{where}: {entry.value} of {_distribution(entry)} does not define {', '.join(missing)}"
        )
    if getattr(engine, "name", None) != name:
        raise SettingsError(
            f"{where}: {entry.value} of {_distribution(entry)} calls itself {getattr(engine, 'name', None)!r}; "
            f'its class attribute `name` has to be "{name}"'
        )
    return engine


def offer(name: str) -> Offer:
    """What the engine of a name brings to the settings of a target; raises as `load`."""
    return load(name).offer()


def _offers() -> dict[str, list[EntryPoint]]:
    from importlib.metadata import entry_points

    offers: dict[str, list[EntryPoint]] = {}
    for offer in sorted(entry_points(group=GROUP), key=lambda offer: (offer.name, _distribution(offer))):
        offers.setdefault(offer.name, []).append(offer)
    return offers


def _distribution(offer: EntryPoint) -> str:
    return "an unnamed distribution" if offer.dist is None else offer.dist.metadata["Name"]


def _what_there_is(name: str, known: tuple[str, ...]) -> str:
    from difflib import get_close_matches

    if not known:
        return "there are none, which means that pytest-speedbench itself is not properly installed"
    close = get_close_matches(name.lower(), known, n=1)
    return f"there are {', '.join(known)}" + (f" (did you mean {close[0]}?)" if close else "")
