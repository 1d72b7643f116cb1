"""Running servers: what an engine is, which ones are installed, and how one is launched and ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pytest_speedbench.errors import SettingsError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from pytest_speedbench.engines.base import Engine

GROUP = "pytest_speedbench.engines"
"""Entry-point group in which a distribution offers an `Engine` class under the name users select."""


def available() -> dict[str, EntryPoint]:
    """The engines that installed distributions offer, by name in alphabetical order; none is imported."""
    return {name: offers[0] for name, offers in _offers().items()}


def names() -> tuple[str, ...]:
    """Names allowed in `--speedbench-engine`, in alphabetical order."""
    return tuple(_offers())


def load(name: str) -> type[Engine]:
    """Import the engine of a name.

    Args:
        name: as in `--speedbench-engine`.

    Raises:
        SettingsError: nobody offers the name, or two distributions do, or what is offered cannot be imported.
    """
    where = f"--speedbench-engine={name}"
    offers = _offers()
    if name not in offers:
        raise SettingsError(f"{where}: no such engine; {_what_there_is(name, tuple(offers))}")
    if len(offers[name]) > 1:
        both = " and ".join(f"{_distribution(offer)} ({offer.value})" for offer in offers[name])
        raise SettingsError(f"{where}: offered by {both}; uninstall all but one")
    offer = offers[name][0]
    try:
        engine: Any = offer.load()
    except Exception as error:  # whatever a foreign module raises on import
        raise SettingsError(
            f"{where}: {offer.value} of {_distribution(offer)} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(engine, type):
        raise SettingsError(f"{where}: {offer.value} of {_distribution(offer)} is no class")
    return cast("type[Engine]", engine)


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
