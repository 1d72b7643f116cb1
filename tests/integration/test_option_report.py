"""`--speedbench-report` writes a page for people; it, the table, the JSON and JUnit show the same of a run."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Run
from tests.integration.test_verdicts import BASELINE, edited

EVERYWHERE = ("--speedbench-json=run.json", "--speedbench-report=run.md", "--junit-xml=junit.xml")


def cells(folder: Path) -> dict[str, Any]:
    """The cells of the JSON file, by id."""
    return {cell["id"]: cell for cell in json.loads((folder / "run.json").read_text())["cells"]}


def page(folder: Path) -> str:
    return (folder / "run.md").read_text()


def row(cell_id: str, text: str) -> str:
    """The line of a cell in a table."""
    return next(line for line in text.splitlines() if line.startswith(f"{cell_id}  "))


def test_the_page_has_the_table_and_the_failures(pytester: pytest.Pytester, saved: Run) -> None:
    saved("--speedbench-report=run.md", "--speedbench-engine-arg=--draft-quality=0.8")
    text = page(pytester.path)
    assert "## reference-draft_model-k3" in text
    assert "Sample prompts (bundled, not SPEED-Bench)" in text
    assert "qualitative-coding-bs2" in text
    assert "### What failed" in text
    assert "cause: drafter" in text


def test_one_figure_is_shown_everywhere(pytester: pytest.Pytester, run: Run) -> None:
    """Also where a check had more rounds measured after another metric of the cell was judged."""
    pytester.makepyfile(
        test_gate="""
        import json
        import pytest

        @pytest.mark.speedbench(split="throughput_1k", categories=["mixed"], batch_sizes=[2])
        def test_it(speedbench):
            cell = speedbench.measure()
            cell.assert_no_regression("acceptance_length")
            cell.assert_no_regression("output_tps")
            for name in ("acceptance_length", "output_tps"):
                print("shown", name, repr(cell.metric(name)), repr(cell.measurement.metrics[name]))
    """
    )
    pytester.makeconftest("""
        def pytest_speedbench_measured(measurement):
            for name in ("acceptance_length", "output_tps"):
                print("shown", name, repr(measurement.metrics[name]), len(measurement.rounds), "rounds")
    """)
    assert run("--speedbench-save").ret == 0
    result = run("--speedbench-max-rounds=4", "--speedbench-tolerance=output_tps=0.0001", "-s", *EVERYWHERE)
    cell = cells(pytester.path)["throughput_1k-mixed-bs2"]
    rounds = len(cell["rounds"])
    assert rounds > 1, "one round does not show its noise, so that output TPS has more measured"
    junit = {
        item.attrib["name"]: item.attrib["value"]
        for item in ElementTree.parse(pytester.path / "junit.xml").iter("property")
    }
    shown = [line.partition("shown ")[2].split() for line in result.outlines if "shown " in line]
    for name in ("acceptance_length", "output_tps"):
        value = cell["metrics"][name]
        assert cell["verdicts"][name]["value"] == value
        assert float(junit[f"speedbench_{name}"]) == pytest.approx(value)
        assert [words[1:] for words in shown if words[0] == name] == [
            [repr(value), repr(value)],
            [repr(value), str(rounds), "rounds"],
        ]
    for text in (result.stdout.str(), page(pytester.path)):
        al, tps = row("throughput_1k-mixed-bs2", text).split()[1:3]
        assert float(al) == pytest.approx(cell["metrics"]["acceptance_length"], abs=0.005)
        assert float(tps) == pytest.approx(cell["metrics"]["output_tps"], rel=0.005)


def test_an_engine_that_does_not_start_is_in_every_report(pytester: pytest.Pytester, run: Run) -> None:
    result = run("--speedbench-engine-arg=--no-such-option", *EVERYWHERE)
    result.assert_outcomes(errors=3)
    known = cells(pytester.path)
    assert set(known) == {f"qualitative-{name}-bs2" for name in ("coding", "qa", "mean")}
    assert all(cell["error"] and cell["failures"] for cell in known.values())
    reason = "unrecognized arguments: --no-such-option"
    assert reason in "".join(known["qualitative-coding-bs2"]["failures"].values())
    text = page(pytester.path)
    assert "### What failed" in text
    assert text.count(reason) == 1, "the same log is shown once"
    for shown in (text, result.stdout.str()):
        for cell_id in known:
            assert row(cell_id, shown).endswith(" invalid")


def test_a_refused_baseline_is_refused_in_every_report(pytester: pytest.Pytester, run: Run) -> None:
    result = run("--speedbench-save", "--speedbench-engine-arg=--draft-quality=0.001", *EVERYWHERE)
    result.assert_outcomes(failed=2, passed=1)
    reason = "is that of a dead drafter"
    for cell_id in ("qualitative-coding-bs2", "qualitative-qa-bs2"):
        cell = cells(pytester.path)[cell_id]
        assert reason in cell["refused"]
        assert any(reason in failure for failure in cell["failures"].values())
        for shown in (page(pytester.path), result.stdout.str()):
            assert row(cell_id, shown).endswith(" refused")
    assert reason in page(pytester.path)


OTHER_HARDWARE = """
    import pytest

    @pytest.mark.speedbench(split="throughput_1k", categories=["mixed"], batch_sizes=[2])
    def test_throughput(speedbench):
        speedbench.measure().assert_no_regression("output_tps", "user_tps")
"""


@pytest.fixture
def elsewhere(pytester: pytest.Pytester, run: Run) -> Run:
    """As `run`, with throughput gated and a baseline of it from other hardware only."""
    pytester.makepyfile(test_gate=OTHER_HARDWARE)
    assert run("--speedbench-save").ret == 0
    edited(pytester.path / BASELINE, lambda found: found, "NVIDIA H100 80GB HBM3 x 8")
    return run


def test_checks_that_were_not_made_are_counted_in_every_report(
    pytester: pytest.Pytester, elsewhere: Run
) -> None:
    result = elsewhere(*EVERYWHERE)
    result.assert_outcomes(skipped=1)
    counted = "2 checks were not made: the baseline holds throughput of other hardware only;"
    result.stdout.fnmatch_lines([counted])
    assert f"- {counted}" in page(pytester.path)
    not_made = json.loads((pytester.path / "run.json").read_text())["not_made"]
    assert [text.partition(":")[0] for text in not_made] == [
        f"throughput_1k-mixed-bs2 {metric}" for metric in ("output_tps", "user_tps")
    ]


def test_checks_that_cannot_be_made_fail_where_that_is_asked_for(
    pytester: pytest.Pytester, elsewhere: Run
) -> None:
    result = elsewhere("--speedbench-incomparable=fail", *EVERYWHERE)
    result.assert_outcomes(failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["INCOMPARABLE: 2 checks, throughput of this cell is stored for NVIDIA H100 *"]
    )
    result.stdout.no_fnmatch_line("*were not made*")
    assert "**INCOMPARABLE: 2 checks" in page(pytester.path)
    assert cells(pytester.path)["throughput_1k-mixed-bs2"]["verdict"] == "incomparable"
