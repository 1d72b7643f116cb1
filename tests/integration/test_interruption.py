"""SIGTERM, Ctrl-C and pytest-timeout: what was measured is written, the rest says why it is missing, engines end."""

from __future__ import annotations

import json
import signal

import pytest

from tests.integration.conftest import Run

OPTIONS = (
    "--speedbench-engine=reference",
    "--speedbench-output-length=32",
    "--speedbench-ignore-eos",
    "--speedbench-rounds=2",
    "--speedbench-json=results.json",
    "--speedbench-report=report.md",
)
CONFTEST = """
    import os, psutil
    from pytest_speedbench.run.target_run import TargetRun

    measure = TargetRun.measure

    def interrupted(self, cell, plan, number):
        if (cell.category, number) == ("qa", 2):
            print("engine:", *(child.pid for child in psutil.Process().children(recursive=True)))
            {}
        return measure(self, cell, plan, number)

    TargetRun.measure = interrupted
"""


@pytest.mark.parametrize(
    "interruption", ["raise KeyboardInterrupt", f"os.kill(os.getpid(), {int(signal.SIGTERM)})"]
)
def test_an_interrupted_run_writes_what_it_has_and_ends_its_engine(
    pytester: pytest.Pytester, gate: str, interruption: str
) -> None:
    import psutil

    pytester.makeconftest(CONFTEST.format(interruption))
    result = pytester.runpytest_subprocess("-s", *OPTIONS)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    (line,) = (line for line in result.outlines if "engine: " in line)
    pids = [int(pid) for pid in line.partition("engine: ")[2].split()]
    assert pids and not [pid for pid in pids if psutil.pid_exists(pid)]
    cells = {cell["id"]: cell for cell in json.loads((pytester.path / "results.json").read_text())["cells"]}
    assert cells["qualitative-coding-bs2"]["metrics"]["acceptance_length"] > 1
    assert len(cells["qualitative-coding-bs2"]["rounds"]) == 2
    (problem,) = cells["qualitative-qa-bs2"]["problems"]
    assert "was interrupted" in problem
    assert "qualitative-qa-bs2" in (pytester.path / "report.md").read_text()


def test_a_timeout_in_a_test_makes_the_later_cells_of_its_group_invalid(
    pytester: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeconftest(
        CONFTEST.format("pytest.fail('Timeout (>2.0s) from pytest-timeout.')").replace("os,", "os, pytest,")
    )
    result = pytester.runpytest_subprocess(*OPTIONS)
    result.assert_outcomes(failed=1, errors=2)
    result.stdout.fnmatch_lines(
        [
            "*INVALID: round 2:*",
            "*test_gate.py::test_acceptance_length*qualitative-coding-bs2*",
            "*was interrupted (Timeout (>2.0s) from pytest-timeout.)",
        ]
    )
    result.stdout.no_fnmatch_line("*StatisticsError*")
    assert "INTERNALERROR" not in result.stdout.str()
