"""`--speedbench-against` compares with another target measured in the same run; `speedup` does with method none."""

from __future__ import annotations

import pytest

from tests.integration.conftest import Run

TARGETS = """
targets:
  new: {engine: reference, output_length: 32, ignore_eos: true, engine_args: [--draft-quality=0.8]}
  old: {engine: reference, output_length: 32, ignore_eos: true}
  same: {engine: reference, output_length: 32, ignore_eos: true}
"""


@pytest.fixture
def targets(pytester: pytest.Pytester, gate: str) -> None:
    (pytester.path / "speedbench.yaml").write_text(TARGETS)


@pytest.mark.usefixtures("targets")
def test_no_file_is_needed(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--speedbench-target=same", "--speedbench-against=old")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        ["speedbench: against old: reference, draft_model k=3", "*qualitative-coding-bs2*pass +0.0 %"]
    )
    assert not (pytester.path / "baselines").exists()


@pytest.mark.usefixtures("targets")
def test_a_worse_target_fails(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--speedbench-target=new", "--speedbench-against=old")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["  cause: drafter. *", "  8 of 8 prompts paired with old"])
    result.stdout.no_fnmatch_line("*--speedbench-save*")


@pytest.mark.usefixtures("targets")
def test_a_target_to_compare_with_that_does_not_start_fails_every_cell(pytester: pytest.Pytester) -> None:
    path = pytester.path / "speedbench.yaml"
    path.write_text(path.read_text() + "  broken: {engine: reference, engine_args: [--nonsense]}\n")
    result = pytester.runpytest("--speedbench-target=same", "--speedbench-against=broken")
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines(
        [
            "broken cannot serve as a reference: qualitative-coding-bs2 was not measured: reference exited *",
            "*unrecognized arguments: --nonsense",
            "qualitative-qa-bs2 was not measured, for the reason that qualitative-coding-bs2 gives: *",
        ]
    )
    assert "Traceback" not in result.stdout.str()


@pytest.mark.usefixtures("targets")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--speedbench-against=new"],
            "ERROR: --speedbench-against=new: is the target itself; name another one",
        ),
        (["--speedbench-against=old", "--speedbench-save"], "ERROR: --speedbench-save does not go with *"),
        (
            ["--speedbench-against=older"],
            "ERROR: --speedbench-against=older: speedbench.yaml has no such target*",
        ),
    ],
)
def test_what_does_not_go_together(pytester: pytest.Pytester, arguments: list[str], line: str) -> None:
    result = pytester.runpytest("--speedbench-target=new", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([line])


SPEEDUP = """
    import pytest

    @pytest.mark.speedbench(split="throughput_1k", categories=["mixed"], batch_sizes=[1], speedup=True)
    def test_speedup(speedbench):
        cell = speedbench.measure()
        cell.assert_no_regression("speedup")
        assert cell.metric("speedup") > 1
"""


def test_speedup_is_over_the_same_target_without_speculation(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(test_gate=SPEEDUP)
    result = run("--speedbench-save")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["cell * speedup  verdict", "throughput_1k-mixed-bs1 * 1.*measured"])
    logs = sorted((pytester.path / ".speedbench" / "logs").iterdir())
    assert ["--method none" in log.read_text() for log in logs] == [True, False]


def test_speedup_of_no_speculation_is_said_to_be_none(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(test_gate=SPEEDUP)
    result = run("--speedbench-method=none")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*INVALID: speedup is missing: speedup is over method none,*", "*which this target is"]
    )
