"""Reads `speedbench.yaml`: named targets and what belongs to each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_speedbench.errors import SettingsError
from pytest_speedbench.files import YamlFileError, load_checked

SCHEMA = Path(__file__).with_name("speedbench.schema.json")


def load_target(path: Path, name: str, option: str = "--speedbench-target") -> dict[str, Any]:
    """What `speedbench.yaml` says of one target, by option.

    Args:
        path: the file.
        name: a key under `targets`.
        option: that asked for it.

    Raises:
        SettingsError: no such file or target, or a file that does not fit its schema; names the place.
    """
    if not path.exists():
        raise SettingsError(
            f"{option}={name}: there is no {path.name} in {path.parent}; write one, or give --speedbench-engine"
        )
    try:
        document = load_checked(path, SCHEMA)
    except YamlFileError as error:
        raise SettingsError(str(error)) from None
    targets = document["targets"]
    if name not in targets:
        raise SettingsError(
            f"{option}={name}: {path.name} has no such target; it has {', '.join(sorted(targets))}"
        )
    values = dict(targets[name])
    if "tolerance" in values:
        values["tolerance"] = [f"{metric}={loss}" for metric, loss in values["tolerance"].items()]
    if "env" in values:
        values["env"] = [f"{variable}={value}" for variable, value in values["env"].items()]
    return values
