"""Reads a value of pytest's configuration as it was written, where pytest itself does not take it for its type.

pytest refuses `[1, 4]` in its native TOML (it knows lists of strings only) and a number in quotes, and says of a bad
number neither where it is nor what is allowed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iniconfig import IniConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SECTIONS = ("pytest", "tool:pytest")


def as_written(name: str, file: Path | None, overrides: Sequence[str] | None) -> Any:
    """The value of an ini option, untyped.

    Args:
        name: of the option.
        file: pytest's configuration file, which was read before.
        overrides: `NAME=VALUE`s of pytest's `-o`, of which the last counts.

    Returns:
        A text, or what TOML has; None where the option has no value.
    """
    for override in reversed(overrides or ()):
        key, _, value = override.partition("=")
        if key == name:
            return value
    if file is None:
        return None
    if file.suffix != ".toml":
        sections = IniConfig(str(file))
        return next((sections.get(each, name) for each in _SECTIONS if sections.get(each, name)), None)
    document = tomllib.loads(file.read_text("utf-8"))
    table = document.get("tool", document).get("pytest", {})
    return table.get("ini_options", table).get(name)
