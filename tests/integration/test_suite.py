"""The ready-made tests."""

from __future__ import annotations

import pytest

from tests.integration.conftest import Run


def test_a_timeout_for_ordinary_tests_does_not_end_a_measurement(pytester: pytest.Pytester, run: Run) -> None:
    pytest.importorskip("pytest_timeout")
    pytester.makepyfile(
        test_ready_made="from pytest_speedbench.suite.test_acceptance import test_acceptance_length",
    )
    pytester.makepyfile(test_ordinary="import time\ndef test_it(): time.sleep(1)")
    narrow = ("--timeout=0.2", "--strict-markers", "--speedbench-category=qa", "--speedbench-batch-size=2")
    ready_made = run("test_ready_made.py", "--speedbench-save", *narrow)
    ready_made.assert_outcomes(passed=1)
    run("test_ordinary.py", *narrow).assert_outcomes(failed=1)


def test_without_pytest_timeout_its_mark_is_not_used(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(
        test_gate="from pytest_speedbench.suite.test_acceptance import test_acceptance_length"
    )
    narrow = ("--speedbench-category=qa", "--speedbench-batch-size=2")
    assert run("-p", "no:timeout", "--strict-markers", "--collect-only", *narrow).ret == 0
