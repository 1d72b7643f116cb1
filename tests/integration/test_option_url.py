"""`--speedbench-url` measures a server that already runs, and leaves it running."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_speedbench.engines.launch.process import start
from pytest_speedbench.engines.reference.engine import ReferenceEngine
from pytest_speedbench.settings.target import Target
from tests.integration.conftest import Run


def test_a_running_server_is_measured_and_left_running(tmp_path: Path, run: Run) -> None:
    target = Target("reference", "reference", "draft_model", 3)
    with start(ReferenceEngine(target), target, tmp_path / "logs") as server:
        result = run(f"--speedbench-url={server.url}", "--speedbench-save")
        result.assert_outcomes(passed=3)
        result.stdout.fnmatch_lines([f"speedbench: reference, draft_model k=3 at {server.url}; target *"])
        assert server.exit_code() is None
        run(f"--speedbench-url={server.url}").assert_outcomes(passed=3)


def test_nobody_there_is_said_so(run: Run) -> None:
    result = run("--speedbench-url=http://127.0.0.1:1")
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines(
        [
            "qualitative-coding-bs2 was not measured: --speedbench-url=http://127.0.0.1:1: GET http://127.0.0.1:1/health failed: *; is the server running?"
        ]
    )
    assert "Traceback" not in result.stdout.str()


def test_speedup_needs_a_second_server(pytester: pytest.Pytester, tmp_path: Path, run: Run) -> None:
    pytester.makepyfile(
        test_gate="""
        import pytest

        @pytest.mark.speedbench(split="throughput_1k", categories=["mixed"], batch_sizes=[2], speedup=True)
        def test_speedup(speedbench):
            speedbench.measure().assert_no_regression("speedup")
    """
    )
    target = Target("reference", "reference", "draft_model", 3)
    with start(ReferenceEngine(target), target, tmp_path / "logs") as server:
        result = run(f"--speedbench-url={server.url}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*INVALID: speedup is missing: speedup needs the same target*"])
