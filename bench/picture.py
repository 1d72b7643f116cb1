"""Makes `docs/failing-run.svg`, the picture of a failing run in the README: `python -m bench.picture`.

Runs the quickstart with a weaker drafter in a terminal of 80 columns, and draws what it prints with rich
(`pip install rich`). Nothing in the picture is edited.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "failing-run.svg"
COLUMNS = 80
ARGUMENTS = (
    "examples/quickstart",
    "--speedbench-engine=reference",
    "--speedbench-engine-arg=--draft-quality=0.9",
    "--speedbench-category=math,rag,summarization",
    "--speedbench-split=qualitative",
    "--speedbench-batch-size=1",
)
QUIET = "-p no:cacheprovider -p no:rerunfailures --no-header -rN"


def main() -> int:
    """Run, draw, write."""
    from rich.console import Console
    from rich.terminal_theme import MONOKAI
    from rich.text import Text

    environment = {**os.environ, "COLUMNS": str(COLUMNS), "FORCE_COLOR": "1", "PYTEST_ADDOPTS": QUIET}
    environment.pop("CI", None)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *ARGUMENTS],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if run.returncode != 1:
        print(f"exit status {run.returncode}, and 1 was expected:\n{run.stdout}{run.stderr}")
        return 1
    with open(os.devnull, "w") as nowhere:
        console = Console(width=COLUMNS, record=True, file=nowhere, force_terminal=True, legacy_windows=False)
        console.print(f"$ {shlex.join(['pytest', *ARGUMENTS])}", soft_wrap=False, highlight=False)
        console.print(Text.from_ansi(run.stdout.rstrip()), highlight=False)
        PICTURE.write_text(console.export_svg(title="pytest-speedbench", theme=MONOKAI), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
