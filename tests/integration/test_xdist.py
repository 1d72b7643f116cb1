"""An engine is measured by one process: pytest-xdist's workers run everything but the tests that need it."""

from __future__ import annotations

import pytest

from tests.integration.conftest import GATE

REFUSAL = "*--speedbench-engine does not go with pytest-xdist's -n: *"


@pytest.fixture
def repository(pytester: pytest.Pytester, gate: str) -> pytest.Pytester:
    """The gate beside other tests, in a repository that runs everything with xdist."""
    pytester.makeini("[pytest]\naddopts = -n 1 -p no:cacheprovider\nspeedbench_engine = reference\n")
    pytester.makepyfile(test_other="def test_other(): ...\ndef test_another(): ...")
    return pytester


@pytest.mark.parametrize(
    "arguments", [["test_other.py"], ["-k", "other"], ["--speedbench-batch-size=64"]], ids=" ".join
)
def test_a_run_that_collects_no_gated_test_is_nobody_s_concern(
    repository: pytest.Pytester, arguments: list[str]
) -> None:
    result = repository.runpytest_subprocess(*arguments)
    assert result.ret == 0
    result.assert_outcomes(passed=2)


def test_a_run_that_collects_gated_tests_stops(repository: pytest.Pytester) -> None:
    result = repository.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([REFUSAL])
    result.assert_outcomes()


def test_a_test_that_takes_the_engine_stops_the_run_too(repository: pytest.Pytester) -> None:
    repository.makepyfile(test_engine="def test_engine(speedbench_engine): ...")
    result = repository.runpytest_subprocess("test_engine.py", "test_other.py")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([REFUSAL])


def test_a_test_that_asks_for_the_engine_as_it_runs_fails(repository: pytest.Pytester) -> None:
    repository.makepyfile(test_late="def test_late(request): request.getfixturevalue('speedbench_engine')")
    result = repository.runpytest_subprocess("test_late.py")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([REFUSAL])


def test_collecting_is_never_refused(repository: pytest.Pytester) -> None:
    result = repository.runpytest_subprocess("--collect-only", "-q")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["test_gate.py::test_acceptance_length[[]qualitative-coding-bs2]"])


def test_one_process_measures(repository: pytest.Pytester) -> None:
    result = repository.runpytest_subprocess("-n", "0", "-k", "other or mean", "--speedbench-output-length=8")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.no_fnmatch_line(REFUSAL)


def test_tests_that_disagree_about_a_cell_are_named_as_without_workers(
    repository: pytest.Pytester,
) -> None:
    repository.makepyfile(
        test_twice=GATE.replace("batch_sizes=[2]", "batch_sizes=[2], rounds=5"), test_gate=GATE
    )
    repository.makeini("[pytest]\naddopts = -n 1\n")
    result = repository.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        ["*test_gate.py::test_* and test_twice.py::test_* name qualitative-coding-bs2*"]
    )


def test_without_an_engine_workers_skip(repository: pytest.Pytester) -> None:
    repository.makeini("[pytest]\naddopts = -n 1\n")
    repository.runpytest_subprocess().assert_outcomes(passed=2, skipped=3)
