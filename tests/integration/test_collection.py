"""Cells are named, narrowed and refused with no engine, model, data or network."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_every_cell_has_a_stable_id(pytester: pytest.Pytester, gate: str) -> None:
    result = pytester.runpytest("--collect-only", "-q")
    assert result.outlines[:3] == [
        "test_gate.py::test_acceptance_length[qualitative-coding-bs2]",
        "test_gate.py::test_acceptance_length[qualitative-qa-bs2]",
        "test_gate.py::test_acceptance_length[qualitative-mean-bs2]",
    ]


def test_collecting_needs_neither_engine_nor_data(pytester: pytest.Pytester, gate: str) -> None:
    result = pytester.runpytest(
        "--collect-only",
        "-q",
        "--speedbench-engine=vllm",
        "--speedbench-engine-python=/nowhere/python",
        "--speedbench-data=/nowhere",
    )
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*[[]qualitative-coding-bs2]"])


def test_collecting_imports_nothing_heavy(pytester: pytest.Pytester, gate: str) -> None:
    pytester.makeconftest("""
        import sys

        def pytest_unconfigure():
            heavy = {"numpy", "scipy", "yaml", "aiohttp", "requests", "jsonschema", "psutil"} & set(sys.modules)
            print("heavy:", sorted(heavy))
    """)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", "--collect-only", "-q", "-s"],
        cwd=pytester.path,
        capture_output=True,
        text=True,
    )
    assert "heavy: []" in result.stdout


def test_without_an_engine_the_tests_skip_and_say_why(pytester: pytest.Pytester, gate: str) -> None:
    result = pytester.runpytest("-rs")
    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines(["*no engine to measure: give --speedbench-engine=NAME*"])


def test_a_test_that_names_no_batch_sizes_takes_those_of_the_run(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.speedbench(split="throughput_1k", categories=["mixed"])
        def test_it(speedbench): ...
    """)
    result = pytester.runpytest("--collect-only", "-q", "--speedbench-batch-size=4,16")
    result.stdout.fnmatch_lines(["*[[]throughput_1k-mixed-bs4]", "*[[]throughput_1k-mixed-bs16]"])
    result = pytester.runpytest("--collect-only", "-q")
    result.stdout.fnmatch_lines(["*[[]throughput_1k-mixed-bs1]", "*[[]throughput_1k-mixed-bs32]"])


@pytest.mark.parametrize(
    ("option", "kept"),
    [
        ("--speedbench-category=qa", ["qualitative-qa-bs2"]),
        (
            "--speedbench-batch-size=2,8",
            ["qualitative-coding-bs2", "qualitative-qa-bs2", "qualitative-mean-bs2"],
        ),
        (
            "--speedbench-split=qualitative",
            ["qualitative-coding-bs2", "qualitative-qa-bs2", "qualitative-mean-bs2"],
        ),
    ],
)
def test_options_narrow_the_grid(pytester: pytest.Pytester, gate: str, option: str, kept: list[str]) -> None:
    result = pytester.runpytest("--collect-only", "-q", option)
    assert [line for line in result.outlines if "::" in line] == [
        f"test_gate.py::test_acceptance_length[{cell}]" for cell in kept
    ]


def test_a_grid_narrowed_to_nothing_runs_no_test(pytester: pytest.Pytester, gate: str) -> None:
    result = pytester.runpytest("--speedbench-batch-size=64")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(["*1 deselected*"])


def test_k_selects_cells(pytester: pytest.Pytester, gate: str) -> None:
    result = pytester.runpytest("--collect-only", "-q", "-k", "coding")
    result.stdout.fnmatch_lines(["*[[]qualitative-coding-bs2]"])
    result.stdout.no_fnmatch_line("*qa*")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("", "*speedbench(split=None): allowed are qualitative, throughput_1k*"),
        ("split='quality'", "*speedbench(split='quality'): allowed are qualitative, throughput_1k*"),
        (
            "split='qualitative', batch_size=3",
            "*unknown argument 'batch_size'; allowed are split, categories*",
        ),
        ("split='qualitative', batch_sizes=[0]", "*(batch_sizes=[[]0]): whole numbers from 1 to 512*"),
        ("split='qualitative', batch_sizes=['2']", "*(batch_sizes=[[]'2']): whole numbers from 1 to 512*"),
        ("split='qualitative', categories=['code']", "*(categories=[[]'code']): qualitative has coding,*"),
        ("split='qualitative', speedup=1", "*(speedup=1): allowed are True and False*"),
        ("'qualitative'", "*takes keyword arguments only*"),
    ],
)
def test_a_wrong_marker_is_refused_by_name(pytester: pytest.Pytester, arguments: str, line: str) -> None:
    pytester.makepyfile(f"""
        import pytest

        @pytest.mark.speedbench({arguments})
        def test_it(speedbench): ...
    """)
    result = pytester.runpytest("--collect-only")
    assert result.ret == pytest.ExitCode.INTERRUPTED  # pytest's, for a test file that cannot be collected
    result.stdout.fnmatch_lines([line])
    result.stdout.no_fnmatch_line("*in _multicall*")


def test_the_fixture_without_a_marker_says_what_to_write(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(speedbench): ...")
    result = pytester.runpytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*takes the speedbench fixture but names no cells*"])


def test_the_marker_is_registered(pytester: pytest.Pytester) -> None:
    pytester.runpytest("--markers").stdout.fnmatch_lines(["@pytest.mark.speedbench(split, *"])
