"""Options in pytest's configuration file, in each of its formats: lists are lists, numbers are numbers."""

from __future__ import annotations

import pytest

from tests.integration.test_options import refused

NATIVE = pytest.mark.skipif(pytest.version_tuple < (9, 0), reason="pytest 9 has its own table in TOML")
FORMATS = [
    pytest.param("pyproject.toml", "[tool.pytest.ini_options]", id="ini_options"),
    pytest.param("pyproject.toml", "[tool.pytest]", marks=NATIVE, id="tool.pytest"),
    pytest.param("pytest.toml", "[pytest]", marks=NATIVE, id="pytest.toml"),
]
GRID = """
    import pytest

    @pytest.mark.speedbench(split="qualitative", categories=["coding", "qa", "math"], batch_sizes=[1, 2, 4])
    def test_it(speedbench):
        speedbench.measure()
"""


def cells(pytester: pytest.Pytester, *arguments: str) -> list[str]:
    """The categories and batch sizes that are collected, that of the mean left out; sorted."""
    pytester.makepyfile(test_grid=GRID)
    result = pytester.runpytest("--collect-only", "-q", *arguments)
    assert result.ret == 0, result.stdout.str() + result.stderr.str()
    prefix = "test_grid.py::test_it[qualitative-"
    found = [line[len(prefix) : -1] for line in result.stdout.lines if line.startswith(prefix)]
    return sorted(cell for cell in found if not cell.startswith("mean"))


@pytest.mark.parametrize(("file", "table"), FORMATS)
@pytest.mark.parametrize("sizes", ["[1, 4]", '["1", "4"]', '"1, 4"', '["1,4", "1"]'])
def test_a_list_is_a_list(pytester: pytest.Pytester, file: str, table: str, sizes: str) -> None:
    pytester.path.joinpath(file).write_text(
        f'{table}\nspeedbench_batch_size = {sizes}\nspeedbench_category = ["coding", "qa"]\n'
    )
    assert cells(pytester) == ["coding-bs1", "coding-bs4", "qa-bs1", "qa-bs4"]


@pytest.mark.parametrize("text", ["\n    1\n    4", "1, 4", "\n    1,4"])
def test_a_list_in_ini_may_have_lines(pytester: pytest.Pytester, text: str) -> None:
    pytester.makeini(f"[pytest]\nspeedbench_category = qa\nspeedbench_batch_size = {text}\n")
    assert cells(pytester) == ["qa-bs1", "qa-bs4"]


def test_comma_lists_of_the_command_line_add_up(pytester: pytest.Pytester) -> None:
    found = cells(
        pytester, "--speedbench-category=qa", "--speedbench-category=math,qa", "--speedbench-batch-size=2"
    )
    assert found == ["math-bs2", "qa-bs2"]


@pytest.mark.parametrize(("file", "table"), FORMATS)
@pytest.mark.parametrize("quote", ["", '"'], ids=["number", "text"])
def test_numbers_and_flags(pytester: pytest.Pytester, gate: str, file: str, table: str, quote: str) -> None:
    pytester.path.joinpath(file).write_text(
        f"{table}\nspeedbench_draft_length = {quote}5{quote}\nspeedbench_ignore_eos = {quote}true{quote}\n"
        f'speedbench_temperature = {quote}0.5{quote}\nspeedbench_engine = "reference"\n'
    )
    result = pytester.runpytest("--collect-only")
    result.stdout.fnmatch_lines(["speedbench: reference, draft_model k=5; *"])


@pytest.mark.parametrize(("file", "table"), FORMATS)
@pytest.mark.parametrize(
    ("value", "shown"), [("[3, 4]", "[3, 4]"), ('"some"', "some"), ("0", "0"), ('"""1\n2"""', "1 2")]
)
def test_what_is_not_allowed_is_one_line(
    pytester: pytest.Pytester, gate: str, file: str, table: str, value: str, shown: str
) -> None:
    pytester.path.joinpath(file).write_text(f"{table}\nspeedbench_rounds = {value}\n")
    line = refused(pytester, "--speedbench-engine=reference")
    assert line.endswith(f"{file}: speedbench_rounds={shown}: allowed is a whole number from 1")


def test_what_is_not_allowed_in_o(pytester: pytest.Pytester, gate: str) -> None:
    pytester.makeini("[pytest]\nspeedbench_rounds = 2\n")
    line = refused(pytester, "--speedbench-engine=reference", "-o", "speedbench_rounds=some")
    assert line.endswith("speedbench_rounds=some: allowed is a whole number from 1")


def test_zero_is_a_value(pytester: pytest.Pytester, gate: str) -> None:
    pytester.makeini("[pytest]\nspeedbench_warmup = 0\nspeedbench_limit = 0\n")
    line = refused(pytester, "--speedbench-engine=reference")
    assert line.endswith("speedbench_limit=0: allowed is a whole number from 1")


@pytest.mark.skipif(pytest.version_tuple < (8, 4), reason="has no types for numbers")
def test_help_says_the_type(pytester: pytest.Pytester) -> None:
    pytester.runpytest("--help").stdout.fnmatch_lines(
        [
            "  speedbench_draft_length (int):*",
            "  speedbench_batch_size (linelist):*",
            "  speedbench_ignore_eos (bool):*",
        ]
    )
