"""What is written down about a launch: its log file, and its command with the secrets taken out."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from pytest_speedbench.engines.launch.environment import MASK, is_secret
from pytest_speedbench.errors import EngineError

_TAIL_BYTES = 65536
_ARGUMENT = re.compile(r"(?P<dashes>-{0,2})(?P<name>[A-Za-z][\w.-]*)(?P<value>=.*)?", re.DOTALL)


def open_log(logs: Path, name: str) -> tuple[Path, BinaryIO]:
    """Make and open `<logs>/<name>-<n>.log`, n one above those that are there; none is ever overwritten.

    Where the folder around `logs` has to be made, git is told to ignore all of it.

    Raises:
        EngineError: the folder cannot be written.
    """
    try:
        if not logs.parent.exists():
            logs.parent.mkdir(parents=True, exist_ok=True)
            (logs.parent / ".gitignore").write_text("*\n", encoding="utf-8")
        logs.mkdir(exist_ok=True)
        numbered = re.compile(re.escape(name) + r"-(\d+)\.log")
        used = [int(match[1]) for path in logs.iterdir() if (match := numbered.fullmatch(path.name))]
        n = max(used, default=0)
        while True:
            n += 1
            path = logs / f"{name}-{n}.log"
            with contextlib.suppress(FileExistsError):  # another run in the same folder was quicker
                return path, path.open("xb")
    except OSError as error:
        raise EngineError(f"cannot write the log of {name} to {logs}: {error.strerror}") from None


def tail(path: Path, start: int, lines: int) -> str:
    """The last lines of a log; of a progress bar, only what it showed last.

    Args:
        path: the log.
        start: byte offset before which nothing is shown.
        lines: how many at most.
    """
    with path.open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(start, size - _TAIL_BYTES))
        text = log.read().decode(errors="replace")
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in text.rstrip("\n").split("\n")]
    return "\n".join(shown[-lines:])


def mask(command: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """A command fit to be shown, and the secrets that were taken out of it.

    Masked are `--api-key=x`, `--api-key x y` up to the next option, and `HF_TOKEN=x` as given to `env`.
    """
    shown: list[str] = []
    secrets: list[str] = []
    follows = False
    for argument in command:
        parts = _ARGUMENT.fullmatch(argument)
        if follows and not argument.startswith("--"):
            shown.append(MASK)
            secrets.append(argument)
        elif parts and parts["value"] and is_secret(parts["name"]):
            follows = False
            shown.append(f"{parts['dashes']}{parts['name']}={MASK}")
            secrets.append(parts["value"][1:])
        else:
            follows = bool(parts and parts["dashes"] and not parts["value"] and is_secret(parts["name"]))
            shown.append(argument)
    return shown, replaceable(secrets)


def replaceable(secrets: Iterable[str]) -> tuple[str, ...]:
    """Those secrets that can be masked in a text: shorter ones are part of words."""
    return tuple(secret for secret in secrets if len(secret) >= 4)
