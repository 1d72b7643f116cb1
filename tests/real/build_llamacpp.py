"""Build llama.cpp's server from the sources that the sdist of llama-cpp-python carries. Takes 10 CPU minutes.

    python build_llamacpp.py OUT

writes
    OUT/bin/llama-server     linked statically, for any CPU of this architecture
    OUT/bin/python           has `gguf`, for `make_tiny_gguf.py`

Needs a C++ compiler; CMake comes from PyPI. Set CMAKE_BUILD_PARALLEL_LEVEL to build with fewer jobs than there
are cores.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SDIST = HERE / "llamacpp" / "sdist.txt"
REQUIREMENTS = HERE / "llamacpp" / "requirements.txt"
FLAGS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "GGML_NATIVE": "OFF",  # the cache may be used on another CPU than the one that built it
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",  # would download it
}


def build(out: Path) -> None:
    """Make the environment of tools, fetch the sources, build and install the server."""
    run(sys.executable, "-m", "venv", out)
    tools = out / "bin"
    pip = (tools / "python", "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "install", "--only-binary=:all:", "-r", REQUIREMENTS)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        run(*pip, "download", "--no-deps", "--no-binary=llama-cpp-python", "-d", scratch, "-r", SDIST)
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(scratch, filter="data")
        source = Path(scratch) / archive.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp"
        objects = Path(scratch) / "objects"
        options = [f"-D{name}={value}" for name, value in FLAGS.items()]
        options += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}"]
        run(tools / "cmake", "-S", source, "-B", objects, *options)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(len(os.sched_getaffinity(0)))
        run(tools / "cmake", "--build", objects, "--target", "llama-server", "--parallel", jobs)
        shutil.copy2(objects / "bin" / "llama-server", tools)
    run(tools / "llama-server", "--version")


def run(*command: str | Path) -> None:
    """Run a command; what it prints goes to stderr."""
    subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
