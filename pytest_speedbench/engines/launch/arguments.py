"""What is the same for every engine that is launched from an interpreter: its target's checks, its arguments."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_speedbench.errors import SettingsError

if TYPE_CHECKING:
    from pytest_speedbench.settings.methods import Method
    from pytest_speedbench.settings.target import Target

_ANSWER_S = 60.0


def refuse_models(target: Target, method: Method) -> None:
    """Refuse a target that lacks a model or a draft, or names a model that does not exist.

    Args:
        target: what is to be launched.
        method: the target's.

    Raises:
        SettingsError: one line naming the option, its value and what is allowed.
    """
    if target.model is None:
        raise SettingsError(
            f"--speedbench-engine={target.engine} needs --speedbench-model: a name or a folder"
        )
    _refuse_missing("--speedbench-model", target.model)
    refuse_draft_length(target, method)
    if target.draft_model is not None:
        _refuse_missing("--speedbench-draft-model", target.draft_model)
    elif method.draft_model == "needed":
        raise SettingsError(
            f"--speedbench-method={method} needs --speedbench-draft-model: a name or a folder"
        )


def refuse_draft_length(target: Target, method: Method) -> None:
    """Refuse a draft of no tokens.

    Raises:
        SettingsError: one line naming the option, its value and what is allowed.
    """
    if method.has_draft_length and target.draft_length < 1:
        raise SettingsError(
            f"--speedbench-draft-length={target.draft_length}: allowed is a whole number from 1"
        )


def flags(engine_args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Flags and their values, spelt with dashes; "" for a flag without a value."""
    for index, arg in enumerate(engine_args):
        if arg.startswith("-"):
            flag, assigned, value = arg.partition("=")
            following = engine_args[index + 1 : index + 2]
            if not assigned and following and not following[0].startswith("-"):
                value = following[0]
            yield flag.replace("_", "-"), value


def refuse_owned(given: Iterator[tuple[str, str]], owned: Mapping[str, str]) -> None:
    """Refuse launch arguments that are the plugin's to give.

    Args:
        given: flags and their values.
        owned: what to do instead, by flag.

    Raises:
        SettingsError: one line naming the argument and what to do instead.
    """
    for flag, _ in given:
        if flag in owned:
            raise SettingsError(f"--speedbench-engine-arg={flag}: {owned[flag]}")


def parallel_size(given: Iterator[tuple[str, str]], dimensions: Mapping[str, str]) -> int:
    """How many accelerators launch arguments ask for: the product of the sizes of all dimensions.

    Args:
        given: flags and their values; of one dimension the last counts.
        dimensions: dimension by flag, such as `tensor` of both `-tp` and `--tensor-parallel-size`.
    """
    sizes = {dimensions[flag]: value for flag, value in given if flag in dimensions}
    return prod(int(value) for value in sizes.values() if value.isdigit())


def interpreter(chosen: str | None, package: str) -> str:
    """The interpreter that has an engine: the chosen one, else this one, else that of its script on PATH.

    Args:
        chosen: `--speedbench-engine-python`.
        package: name of the engine's Python package, and of its script.
    """
    if chosen is not None:
        return chosen
    script = shutil.which(package)
    if script is None or find_spec(package) is not None:
        return sys.executable
    with open(script, "rb") as file:
        first = file.readline(4096)
    named = first[2:].decode(errors="replace").strip() if first.startswith(b"#!") else ""
    beside = Path(script).resolve().with_name("python")
    return named if "python" in Path(named).name and os.access(named, os.X_OK) else str(beside)


def ask(python: str, code: str) -> dict[str, Any]:
    """Run a few lines in another interpreter; the last line that they print is a JSON object.

    Raises:
        SettingsError: it is no interpreter, or does not answer within a minute.
    """
    try:
        answer = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=_ANSWER_S)
        told: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        raise SettingsError(
            f"--speedbench-engine-python={python}: is no Python interpreter that runs"
        ) from None
    return told


def not_installed(engine: str, label: str, python: str) -> SettingsError:
    """The error for an interpreter without the engine."""
    return SettingsError(
        f"--speedbench-engine={engine}: {label} is not installed in {python}; "
        f"pip install {engine} there, or name its interpreter with --speedbench-engine-python"
    )


def _refuse_missing(option: str, model: str) -> None:
    """Refuse a path without a model; what does not look like a path is a name on a hub, and the engine's to find."""
    path = Path(model).expanduser()
    if not model.startswith((".", "/", "~")) and not path.exists():
        return
    if not path.exists():
        raise SettingsError(f"{option}={model}: there is no such folder")
    if path.is_dir() and not (path / "config.json").is_file():
        raise SettingsError(f"{option}={model}: holds no model, for it has no config.json")
