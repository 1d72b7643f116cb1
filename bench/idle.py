"""What a pytest run pays for the plugin when it is installed and not used, in milliseconds.

    python bench/idle.py [--pairs 60]

Makes a virtual environment with pytest alone, installs this checkout into a folder of its own, and runs `pytest` on one empty test with and without that folder on the path, in
alternating order. Counts the processor time of each run, which other work on the machine disturbs less than the
time on the wall. Reports the median of the paired differences with a 95 % interval of that median (order
statistics), and the difference of the quickest tenth of the runs of either kind, which a busy machine disturbs
least. Needs a package index for pytest.
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Time an unused plugin by paired runs.")
    parser.add_argument("--pairs", type=int, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "test_empty.py").write_text("def test_empty():\n    pass\n")
        python = make_environment(work / "environment")
        version = run(python, "-c", "import pytest; print(pytest.__version__)")
        print(
            f"Python {platform.python_version()}, pytest {version}, {platform.machine()}, {os.cpu_count()} cores"
        )
        installed = work / "installed"
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", installed, ROOT)
        print(f"pytest-speedbench: {report(paired_seconds(python, work, installed, arguments.pairs))}")


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


def paired_seconds(python: Path, folder: Path, installed: Path, pairs: int) -> list[tuple[float, float]]:
    """Seconds of processor time with the plugin and without, pair by pair, in alternating order."""

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
    measured = []
    for pair in range(pairs):
        order = [str(installed), str(empty)] if pair % 2 else [str(empty), str(installed)]
        seconds = {path: once(path) for path in order}
        measured.append((seconds[str(installed)], seconds[str(empty)]))
    return measured


def report(measured: list[tuple[float, float]]) -> str:
    """What the plugin costs, in milliseconds, by two estimates."""
    ordered = sorted(with_plugin - without for with_plugin, without in measured)
    reach = round(0.98 * len(ordered) ** 0.5)
    middle = len(ordered) // 2
    low, high = ordered[max(middle - reach, 0)], ordered[min(middle + reach, len(ordered) - 1)]
    quickest = max(len(measured) // 10, 1)
    with_plugin, without = (sorted(seconds)[:quickest] for seconds in zip(*measured, strict=True))
    difference = statistics.mean(with_plugin) - statistics.mean(without)
    return (
        f"{1e3 * statistics.median(ordered):.1f} ms [95 % CI {1e3 * low:.1f} .. {1e3 * high:.1f}], "
        f"quickest tenth {1e3 * difference:.1f} ms of {1e3 * statistics.mean(without):.0f}, {len(ordered)} pairs"
    )


if __name__ == "__main__":
    main()
