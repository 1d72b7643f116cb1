"""A mistake in an engine's class ends as one line that names the class and the method, not as a traceback of ours."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from pytest_speedbench.errors import EngineError, SpeedBenchError

Returns = Mapping[str, tuple[type, ...]]
"""Types that methods and properties may return, by name; empty where any will do."""


def guard(engine: type, returns: Returns) -> None:
    """Wrap what an engine's class itself defines of these methods and properties.

    A caller then meets a `SpeedBenchError`, or a value of the right type.

    Args:
        engine: the class; changed in place.
        returns: what to wrap.
    """
    for name, types in returns.items():
        defined = vars(engine).get(name)
        if isinstance(defined, property) and defined.fget is not None:
            setattr(engine, name, property(_guarded(engine, defined.fget, types), doc=defined.__doc__))
        elif callable(defined):
            setattr(engine, name, _guarded(engine, defined, types))


def _guarded(engine: type, method: Callable[..., Any], types: tuple[type, ...]) -> Callable[..., Any]:
    where = f"engine {getattr(engine, 'name', '?')}: {engine.__name__}.{method.__name__}"

    @wraps(method)
    def call(*arguments: Any, **keywords: Any) -> Any:
        try:
            value = method(*arguments, **keywords)
        except SpeedBenchError:
            raise
        except Exception as error:  # whatever an engine by others raises
            at = traceback.extract_tb(error.__traceback__)[-1]
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise EngineError(f"{where} raised {reason} ({Path(at.filename).name}:{at.lineno})") from error
        if types and not isinstance(value, types):
            allowed = " or ".join("None" if each is type(None) else each.__name__ for each in types)
            raise EngineError(f"{where} returned {type(value).__name__}, not {allowed}")
        return value

    return call
