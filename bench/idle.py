"""What a pytest run pays for the plugin when it is installed and not used, in milliseconds.

    python bench/idle.py [--pairs 60]

Makes a virtual environment with pytest alone, installs this checkout (and, to compare, other plugins) each into a
folder of its own, and runs `pytest` on one empty test with and without that folder on the path, in
alternating order. Counts the processor time of each run, which other work on the machine disturbs less than the
time on the wall. Reports the median of the paired differences with a 95 % interval of that median (order
statistics). Needs a package index for pytest and the plugins to compare with.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OTHERS = ("pytest-mock", "pytest-benchmark", "pytest-xdist", "syrupy")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time an unused plugin by paired runs.")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--others", action="store_true", help=f"time {', '.join(OTHERS)} too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "test_empty.py").write_text("def test_empty():\n    pass\n")
        python = make_environment(work / "environment")
        version = run(python, "-c", "import pytest; print(pytest.__version__)")
        print(
            f"Python {platform.python_version()}, pytest {version}, {platform.machine()}, {os.cpu_count()} cores"
        )
        for name in ("pytest-speedbench", *(OTHERS if arguments.others else ())):
            installed = work / name
            wanted = [str(ROOT), "--no-deps"] if name == "pytest-speedbench" else [name]
            run(python, "-m", "pip", "install", "--quiet", "--target", str(installed), *wanted)
            print(
                f"{name}: {report(paired_differences(python, work, installed, arguments.pairs))}", flush=True
            )


def make_environment(folder: Path) -> Path:
    """A virtual environment with pytest and nothing else; returns its interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "pytest")
    return python


def run(*command: str | Path) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def paired_differences(python: Path, folder: Path, installed: Path, pairs: int) -> list[float]:
    """Seconds of processor time with the plugin minus those without, pair by pair, in alternating order."""

    def once(path: str) -> float:
        environment = {**os.environ, "PYTHONPATH": path}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # byte code is read, as in any second run
        command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_empty.py"]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{' '.join(command)} failed with status {status}")
        return usage.ru_utime + usage.ru_stime

    empty = folder / "nothing"
    empty.mkdir(exist_ok=True)
    for path in (str(installed), str(empty)):
        once(path)  # writes the byte code
    differences = []
    for pair in range(pairs):
        order = [str(installed), str(empty)] if pair % 2 else [str(empty), str(installed)]
        seconds = {path: once(path) for path in order}
        differences.append(seconds[str(installed)] - seconds[str(empty)])
    return differences


def report(differences: list[float]) -> str:
    """Median with its 95 % interval, in milliseconds."""
    ordered = sorted(differences)
    reach = round(0.98 * len(ordered) ** 0.5)
    middle = len(ordered) // 2
    low, high = ordered[max(middle - reach, 0)], ordered[min(middle + reach, len(ordered) - 1)]
    median = statistics.median(ordered)
    return f"{1e3 * median:.1f} ms [95 % CI {1e3 * low:.1f} .. {1e3 * high:.1f}], {len(ordered)} pairs"


if __name__ == "__main__":
    main()
