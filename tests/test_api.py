"""What a user imports from the package's root."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_speedbench
from pytest_speedbench import hookspecs

API = (Path(__file__).parent.parent / "docs" / "api.md").read_text("utf-8")
NAMES = sorted(set(pytest_speedbench.__all__) - {"__version__"})


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_documented_and_there(name: str) -> None:
    assert inspect.isclass(getattr(pytest_speedbench, name))
    assert f"`{name}`" in API
    assert name in dir(pytest_speedbench)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(pytest_speedbench.__file__).read_text("utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if (node.module or "").startswith("pytest_speedbench")]
    assert sorted(alias.name for node in ours for alias in node.names) == NAMES
    for node in ours:
        for alias in node.names:
            assert getattr(pytest_speedbench, alias.name).__module__ == node.module


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match=r"^module 'pytest_speedbench' has no attribute 'Speedbench'$"):
        _ = pytest_speedbench.Speedbench


def test_importing_the_package_imports_nothing_of_it() -> None:
    code = "import sys, pytest_speedbench; print([name for name in sys.modules if 'speedbench' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['pytest_speedbench']"


def test_every_hook_is_documented() -> None:
    hooks = {
        f"{name}({', '.join(inspect.signature(hook).parameters)})"
        for name, hook in vars(hookspecs).items()
        if name.startswith("pytest_speedbench_")
    }
    assert hooks == set(re.findall(r"^\| `(pytest_speedbench_[^`]+)`", API, re.MULTILINE))
