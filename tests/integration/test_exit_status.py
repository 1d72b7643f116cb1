"""What a CI job learns from the exit status and from JUnit: a check failed, or something could not be measured."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from pytest_speedbench.run.session import EX_TEMPFAIL
from tests.integration.conftest import Run

DEAD = ("--speedbench-url=http://127.0.0.1:9",)
NOT_STARTING = ("--speedbench-engine-arg=--no-such-option",)
FAILING = ("--speedbench-engine-arg=--fault=http-500",)
DYING = ("--speedbench-engine-arg=--fault=crash", "--speedbench-engine-arg=--fault-after=1")


def junit(pytester: pytest.Pytester) -> list[list[str]]:
    """What each test case of the JUnit file holds."""
    root = ElementTree.parse(pytester.path / "junit.xml").getroot()
    return [[child.tag for child in case if child.tag != "properties"] for case in root.iter("testcase")]


@pytest.mark.parametrize(
    "arguments",
    [DEAD, NOT_STARTING, FAILING, DYING],
    ids=["no server", "does not start", "fails requests", "dies"],
)
def test_what_could_not_be_measured_is_an_error_and_may_be_retried(
    pytester: pytest.Pytester, saved: Run, arguments: tuple[str, ...]
) -> None:
    result = saved("--junitxml=junit.xml", "--speedbench-category=qa", *arguments)
    assert result.ret == EX_TEMPFAIL
    result.assert_outcomes(errors=1)
    assert junit(pytester) == [["error"]]


def test_a_check_that_failed_is_a_failure(pytester: pytest.Pytester, run: Run) -> None:
    result = run("--junitxml=junit.xml", "--speedbench-category=qa")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1)
    assert junit(pytester) == [["failure"]]


def test_a_metric_that_the_engine_cannot_have_is_a_failure(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(
        test_gate="""
        import pytest

        @pytest.mark.speedbench(split="qualitative", categories=["qa"], batch_sizes=[2], metrics="speedup")
        def test_it(speedbench):
            speedbench.measure().assert_no_regression("speedup")
    """
    )
    result = run("--speedbench-method=none")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*INVALID: speedup is missing: *"])


def test_any_other_failure_of_the_run_outweighs(pytester: pytest.Pytester, gate: str, run: Run) -> None:
    pytester.makepyfile(test_other="def test_other(): assert False")
    result = run("--speedbench-category=qa", *DEAD)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1, errors=1)


def test_one_check_that_fails_beside_what_could_not_be_measured_outweighs(run: Run) -> None:
    assert run("--speedbench-save", "-k", "qa").ret == pytest.ExitCode.OK
    result = run("--speedbench-engine-arg=--fault=crash", "--speedbench-engine-arg=--fault-after=14")
    assert result.ret == pytest.ExitCode.TESTS_FAILED, "coding has no baseline"
    result.assert_outcomes(failed=1, errors=2)


def test_an_engine_fixture_that_cannot_start_may_be_retried(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(test_gate="def test_it(speedbench_engine): ...\ndef test_too(speedbench_engine): ...")
    result = run(*DEAD)
    assert result.ret == EX_TEMPFAIL
    result.assert_outcomes(errors=2)


def test_the_test_cannot_swallow_it(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(
        test_gate="""
        import pytest

        @pytest.mark.speedbench(split="qualitative", categories=["qa"], batch_sizes=[2])
        def test_it(speedbench):
            try:
                speedbench.measure()
            except Exception:
                pass
    """
    )
    run(*DEAD).assert_outcomes(errors=1)
