"""A bad value stops the run before anything is launched, with one line that says what is allowed."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest

from pytest_speedbench.settings.options import OPTIONS, Option


def refused(pytester: pytest.Pytester, *arguments: str) -> str:
    """The one line that ends a run before anything is launched."""
    result = pytester.runpytest(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR, result.stdout.str() + result.stderr.str()
    [line] = [line for line in result.stderr.lines if line]
    assert line.startswith("ERROR: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--speedbench-engine=vlm"], "ERROR: --speedbench-engine=vlm: no such engine; *vllm*"),
        (
            ["--speedbench-engine=vllm", "--speedbench-method=eagle4"],
            "ERROR: --speedbench-method=eagle4: engine vllm has dflash, draft_model,*",
        ),
        (
            ["--speedbench-draft-length=0"],
            "ERROR: --speedbench-draft-length=0: allowed is a whole number from 1",
        ),
        (
            ["--speedbench-batch-size=0"],
            "ERROR: --speedbench-batch-size=0: allowed is a comma list of whole numbers from 1 to 512",
        ),
        (["--speedbench-batch-size=many"], "ERROR: --speedbench-batch-size=many: allowed is a comma list*"),
        (["--speedbench-batch-size=1,"], "ERROR: --speedbench-batch-size=1,: allowed is a comma list*"),
        (
            ["--speedbench-category=code"],
            "ERROR: --speedbench-category=code: allowed is a comma list of coding,*",
        ),
        (
            ["--speedbench-split=quality"],
            "ERROR: --speedbench-split=quality: allowed is a comma list of qualitative*",
        ),
        (["--speedbench-limit=0"], "ERROR: --speedbench-limit=0: allowed is a whole number from 1"),
        (
            ["--speedbench-output-length=1"],
            "ERROR: --speedbench-output-length=1: allowed is a whole number from 2",
        ),
        (["--speedbench-temperature=-1"], "ERROR: --speedbench-temperature=-1: allowed is a number from 0"),
        (["--speedbench-temperature=nan"], "ERROR: --speedbench-temperature=nan: allowed is a number from 0"),
        (["--speedbench-rounds=0"], "ERROR: --speedbench-rounds=0: allowed is a whole number from 1"),
        (
            ["--speedbench-engine-timeout=0"],
            "ERROR: --speedbench-engine-timeout=0: allowed is seconds above 0",
        ),
        (
            ["--speedbench-tolerance=0.1"],
            "ERROR: --speedbench-tolerance=0.1: allowed is METRIC=LOSS with METRIC one of*",
        ),
        (
            ["--speedbench-tolerance=ttft=0.1"],
            "ERROR: --speedbench-tolerance=ttft=0.1: allowed is METRIC=LOSS*",
        ),
        (
            ["--speedbench-tolerance=output_tps=0"],
            "ERROR: *output_tps=0: allowed is METRIC=LOSS*0 < LOSS <= 1",
        ),
        (["--speedbench-url=localhost"], "ERROR: --speedbench-url=localhost: allowed is http://HOST:PORT"),
        (
            ["--speedbench-inconclusive=ignore"],
            "ERROR: --speedbench-inconclusive=ignore: allowed is warn or fail",
        ),
        (["--speedbench-engine="], "ERROR: --speedbench-engine=: allowed is the name of an engine"),
        (["--speedbench-save"], "ERROR: --speedbench-save needs an engine: add --speedbench-engine=NAME*"),
        (
            ["--speedbench-engine=reference", "--speedbench-method=ngram", "--speedbench-draft-model=d"],
            "ERROR: --speedbench-draft-model=d: method ngram of engine reference has no draft model*",
        ),
        (
            ["--speedbench-engine=vllm", "--speedbench-url=http://h:1", "--speedbench-engine-arg=-x"],
            "ERROR: --speedbench-engine-arg: a running server (http://h:1) takes no launch arguments*",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_value_stops_the_run(
    pytester: pytest.Pytester, gate: str, arguments: list[str], line: str
) -> None:
    found = refused(pytester, *arguments)
    assert fnmatch(found, line)
    assert not (pytester.path / ".speedbench").exists()


@pytest.mark.parametrize(
    "option", [option for option in OPTIONS if option.ini], ids=lambda option: option.name
)
def test_every_option_has_an_ini_twin(pytester: pytest.Pytester, option: Option) -> None:
    pytester.runpytest("--help").stdout.fnmatch_lines([f"  speedbench_{option.field}*"])


def test_saving_has_no_ini_twin() -> None:
    """A gate that saves on every run can never fail."""
    assert [option.name for option in OPTIONS if not option.ini] == ["save"]


def test_a_bad_ini_value_names_its_file(pytester: pytest.Pytester, gate: str) -> None:
    pytester.makeini("[pytest]\nspeedbench_rounds = some")
    result = pytester.runpytest("--speedbench-engine=reference")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *tox.ini: speedbench_rounds=some: allowed is a whole number from 1"])


def test_the_command_line_wins_over_ini(pytester: pytest.Pytester, gate: str) -> None:
    pytester.makeini("[pytest]\nspeedbench_engine = reference\nspeedbench_method = ngram")
    result = pytester.runpytest("--collect-only")
    result.stdout.fnmatch_lines(["speedbench: reference, ngram k=3; target reference-ngram-k3"])
    result = pytester.runpytest("--collect-only", "--speedbench-method=none")
    result.stdout.fnmatch_lines(["speedbench: reference, none; target reference-none"])


def test_the_header_says_what_is_measured(pytester: pytest.Pytester, gate: str) -> None:
    result = pytester.runpytest("--collect-only", "--speedbench-engine=reference")
    result.stdout.fnmatch_lines(
        [
            "speedbench: reference, draft_model k=3; target reference-draft_model-k3",
            "speedbench: data: sample (bundled, not SPEED-Bench)",
            "speedbench: baselines: baselines/reference-draft_model-k3.yaml (not there yet)",
        ]
    )
