"""What a test can do with a measured cell."""

from __future__ import annotations

import pytest

from tests.integration.conftest import Run

MARK = """
    import pytest

    @pytest.mark.speedbench(split="qualitative", categories=["qa"], batch_sizes=[2])
    def test_it(speedbench):
        {}
"""


def test_a_cell_is_measured_once_however_many_tests_ask(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(
        test_gate=MARK.format("speedbench.measure()")
        + MARK.format("speedbench.measure()").replace("test_it", "test_too")
    )
    pytester.makeconftest("""
        def pytest_speedbench_measured(measurement):
            print("measured", measurement.cell.id)
    """)
    result = run("-s")
    result.assert_outcomes(passed=2)
    assert result.stdout.str().count("measured qualitative-qa-bs2") == 1
    assert len(list((pytester.path / ".speedbench" / "logs").iterdir())) == 1


def test_every_metric_can_be_asserted_on(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(
        test_gate=MARK.format(
            "cell = speedbench.measure()\n"
            "        assert 1 < cell.metric('acceptance_length') <= 4\n"
            "        assert cell.metric('ttft_s_p99') > 0\n"
            "        assert speedbench.target.method == 'draft_model' and speedbench.cell.batch_size == 2"
        )
    )
    run().assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("statement", "line"),
    [
        ("speedbench.measure().metric('tps')", "no such metric: 'tps'; there are acceptance_length, *"),
        ("speedbench.measure().metric('speedup')", "qualitative-qa-bs2: speedup is missing: *"),
        (
            "speedbench.measure().assert_no_regression('ttft_s_p99')",
            "assert_no_regression: 'ttft_s_p99' cannot be gated; there are acceptance_length, output_tps, *",
        ),
        ("speedbench.measure().assert_no_regression()", "assert_no_regression: no metric named; there are *"),
    ],
)
def test_a_metric_that_is_not_there_fails(
    pytester: pytest.Pytester, run: Run, statement: str, line: str
) -> None:
    pytester.makepyfile(test_gate=MARK.format(statement))
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([line])
    assert "Traceback" not in result.stdout.str()


def test_a_metric_that_the_marker_does_not_name_is_not_judged(pytester: pytest.Pytester, run: Run) -> None:
    mark = MARK.replace("batch_sizes=[2]", "batch_sizes=[2], metrics=['acceptance_length']")
    pytester.makepyfile(test_gate=mark.format("speedbench.measure().assert_no_regression('user_tps')"))
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["assert_no_regression: 'user_tps' is not among the marker's metrics=[[]'acceptance_length'], *"]
    )


def test_others_can_listen_to_checks(pytester: pytest.Pytester, saved: Run) -> None:
    pytester.makeconftest("""
        def pytest_speedbench_checked(cell, check):
            print("checked", cell.id, check.metric, check.verdict.value)
    """)
    saved("-s").stdout.fnmatch_lines(["*checked qualitative-coding-bs2 acceptance_length pass"])
