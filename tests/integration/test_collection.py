"""Cells are named, narrowed and refused with no engine, model, data or network."""

from __future__ import annotations

import subprocess
import sys
import textwrap

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
        (
            "split='qualitative', metrics=['ttft']",
            "*(metrics=[[]'ttft']): the gated metrics are acceptance_length,*",
        ),
        ("split='qualitative', rounds=0", "*(rounds=0): a whole number from 1 is allowed"),
        ("split='qualitative', limit=True", "*(limit=True): a whole number from 1 is allowed"),
        ("split='qualitative', output_length=1", "*(output_length=1): a whole number from 2 is allowed"),
        ("split='qualitative', tolerance=3", "*(tolerance=3): a loss above 0 and at most 1, *"),
        (
            "split='qualitative', metrics='user_tps', tolerance={'output_tps': 0.1}",
            "*(tolerance={'output_tps': 0.1}): a loss above 0 and at most 1, or one for each of user_tps, mean_user_tps",
        ),
        (
            "split='qualitative', exclude_from_mean=['mixed']",
            "*(exclude_from_mean=[[]'mixed']): qualitative has coding,*",
        ),
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


def test_stacked_marks_are_one_grid(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        pytestmark = pytest.mark.speedbench(split="qualitative", categories=["math"], batch_sizes=[1])

        @pytest.mark.speedbench(split="qualitative", categories=["coding"], batch_sizes=[1])
        @pytest.mark.speedbench(split="qualitative", categories=["qa", "math"], batch_sizes=[1])
        def test_it(speedbench): ...
    """)
    result = pytester.runpytest("--collect-only", "-q")
    cells = [line.partition("[")[2].rstrip("]") for line in result.outlines if "::" in line]
    assert cells == [
        "qualitative-math-bs1",
        "qualitative-coding-bs1",
        "qualitative-qa-bs1",
        "qualitative-mean-bs1",
    ]


MARK = "@pytest.mark.speedbench(split='qualitative', categories=['qa'], batch_sizes=[1])"


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (
            """
            @pytest.mark.parametrize("n", [pytest.param(1, marks=MARK)])
            def test_it(speedbench, n): ...
            """,
            "test_it.py::test_it: speedbench marks in pytest.param are not supported; *",
        ),
        (
            """
            @MARK
            @pytest.mark.parametrize("n", [pytest.param(1, marks=MARK)])
            def test_it(speedbench, n): ...
            """,
            "test_it.py::test_it: speedbench marks in pytest.param are not supported; *",
        ),
        (
            """
            @MARK
            class TestIt(unittest.TestCase):
                def test_it(self): ...
            """,
            "test_it.py::TestIt::test_it: a unittest.TestCase cannot be run once per cell; *",
        ),
        (
            """
            class TestIt(unittest.TestCase):
                @MARK
                def test_it(self): ...
            """,
            "test_it.py::TestIt::test_it: a unittest.TestCase cannot be run once per cell; *",
        ),
        (
            """
            pytestmark = MARK

            class TestIt(unittest.TestCase):
                @pytest.fixture(autouse=True)
                def gate(self, speedbench): ...

                def test_it(self): ...
            """,
            "test_it.py::TestIt::test_it: a unittest.TestCase cannot be run once per cell; *",
        ),
        (
            """
            @MARK
            def test_it(): ...
            """,
            "test_it.py::test_it: marked with speedbench, but it does not take the speedbench fixture; *",
        ),
        (
            """
            class TestIt:
                @MARK
                def test_it(self): ...
            """,
            "test_it.py::TestIt::test_it: marked with speedbench, but it does not take the speedbench fixture; *",
        ),
        (
            """
            @MARK
            class TestIt:
                def test_it(self): ...
            """,
            "test_it.py::TestIt: marked with speedbench, but no test in it takes the speedbench fixture",
        ),
        (
            """
            pytestmark = MARK

            def test_it(): ...
            """,
            "test_it.py: marked with speedbench, but no test in it takes the speedbench fixture",
        ),
    ],
)
@pytest.mark.parametrize("arguments", [[], ["--speedbench-category=coding"]], ids=["whole", "narrowed"])
def test_a_mark_that_could_not_gate_is_an_error_at_its_place(
    pytester: pytest.Pytester, source: str, line: str, arguments: list[str]
) -> None:
    text = f"import pytest, unittest\nMARK = {MARK.removeprefix('@')}\n" + textwrap.dedent(source)
    pytester.makepyfile(test_it=text)
    result = pytester.runpytest(*arguments)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*ERROR collecting test_it.py*", line])


def test_a_mark_on_a_module_or_class_may_cover_tests_that_gate_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest, unittest

        pytestmark = pytest.mark.speedbench(split="qualitative", categories=["qa"], batch_sizes=[1])

        class TestAll:
            def test_helper(self): ...
            def test_gate(self, speedbench): ...

        class TestUnit(unittest.TestCase):
            def test_unit(self): ...

        def test_function(): ...
    """)
    pytester.runpytest().assert_outcomes(passed=3, skipped=1)


@pytest.mark.parametrize(
    "source",
    [
        "@pytest.mark.usefixtures('speedbench')\nMARK\ndef test_it(): ...",
        "@pytest.fixture\ndef cell(speedbench): ...\nMARK\ndef test_it(cell): ...",
        "@pytest.fixture(autouse=True)\ndef cell(speedbench): ...\nMARK\ndef test_it(): ...",
    ],
    ids=["usefixtures", "a fixture on top", "autouse"],
)
def test_the_fixture_may_come_by_another_way(pytester: pytest.Pytester, source: str) -> None:
    pytester.makepyfile("import pytest\n" + source.replace("MARK", MARK))
    result = pytester.runpytest("--collect-only", "-q")
    result.stdout.fnmatch_lines(["*::test_it[[]qualitative-qa-bs1]"])


def test_a_mark_that_comes_after_collection_is_refused(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        import pytest

        def pytest_collection_modifyitems(items):
            items[0].add_marker(pytest.mark.speedbench(split="qualitative"))
    """)
    pytester.makepyfile(test_it="def test_it(): ...")
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: test_it.py::test_it: the speedbench mark was added after collection; *"]
    )


def test_two_tests_that_want_a_cell_measured_differently_are_refused(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.speedbench(split="qualitative", categories=["qa"], batch_sizes=[1], rounds=5)
        def test_one(speedbench): ...

        @pytest.mark.speedbench(split="qualitative", categories=["qa"], batch_sizes=[1])
        def test_two(speedbench): ...
    """)
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    file = "test_two_tests_that_want_a_cell_measured_differently_are_refused.py"
    result.stderr.fnmatch_lines(
        [
            f"ERROR: {file}::test_one and {file}::test_two name qualitative-qa-bs1 with rounds=5 and rounds=None; *"
        ]
    )
    pytester.runpytest("-k", "one").assert_outcomes(skipped=1, deselected=1)


def test_the_marker_is_registered(pytester: pytest.Pytester) -> None:
    pytester.runpytest("--markers").stdout.fnmatch_lines(["@pytest.mark.speedbench(split, *"])
