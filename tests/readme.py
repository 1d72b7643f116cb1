"""The commands of an example's README, run as they are written there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
EXAMPLES = REPOSITORY / "examples"


@dataclass(frozen=True)
class Ran:
    """A command, and how it ended."""

    command: str
    status: int
    output: str


def commands_of(readme: Path) -> list[str]:
    """The indented lines of a README: each is a command."""
    return re.findall(r"^    (\S.*)$", readme.read_text("utf-8"), re.MULTILINE)


def copy_of(example: str, folder: Path) -> Path:
    """A copy of an example as it was committed, as deep in a repository as the original."""
    copy = folder / "examples" / example
    ignored = shutil.ignore_patterns("engine", "models", ".speedbench", "__pycache__", "baselines")
    shutil.copytree(EXAMPLES / example, copy, ignore=ignored)
    (folder / "tests").symlink_to(REPOSITORY / "tests")
    return copy


def run_readme(example: Path) -> list[Ran]:
    """Run every command of an example's README in its folder, with this Python for `python` and `pytest`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ran = []
    for command in commands_of(example / "README.md"):
        program, *arguments = shlex.split(command)
        interpreter = {"python": [sys.executable], "pytest": [sys.executable, "-m", "pytest"]}[program]
        done = subprocess.run(
            [*interpreter, *arguments],
            cwd=example,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        ran.append(Ran(command, done.returncode, done.stdout))
    return ran
