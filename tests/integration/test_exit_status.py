"""1: a check failed. 75: no check failed, but something could not be measured, so that it is safe to try again."""

from __future__ import annotations

import pytest

from tests.integration.conftest import Run

TEMPORARY_FAILURE = 75


def test_a_check_that_fails_is_1(run: Run) -> None:
    assert run().ret == pytest.ExitCode.TESTS_FAILED, "there is no baseline"


@pytest.mark.parametrize(
    "argument",
    ["--no-such-option", "--fault=http-500", "--fault=crash"],
    ids=["does not start", "fails requests", "dies"],
)
def test_an_engine_that_cannot_be_measured_is_75(saved: Run, argument: str) -> None:
    result = saved(f"--speedbench-engine-arg={argument}")
    result.assert_outcomes(failed=3)
    assert result.ret == TEMPORARY_FAILURE


def test_one_check_that_fails_beside_what_could_not_be_measured_is_1(
    pytester: pytest.Pytester, run: Run
) -> None:
    assert run("--speedbench-save", "-k", "qa").ret == 0
    assert run("--speedbench-engine-arg=--fault=crash", "--speedbench-engine-arg=--fault-after=14").ret == 1


def test_any_other_test_that_fails_is_1(pytester: pytest.Pytester, saved: Run) -> None:
    pytester.makepyfile(test_other="def test_other(): assert False")
    result = pytester.runpytest(
        "--speedbench-engine=reference",
        "--speedbench-output-length=32",
        "--speedbench-ignore-eos",
        "--speedbench-rounds=1",
        "--speedbench-engine-arg=--fault=http-500",
    )
    result.assert_outcomes(failed=4)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
