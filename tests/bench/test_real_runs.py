"""What `bench.verdicts_real` reads out of results, and which runs it starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from bench import real_runs
from bench.real_runs import About, Judged, Kind, Run, all_runs, first_ratio
from bench.verdicts import BAND, FLOOR, OURS

NOTHING = Kind("unchanged", "nothing is", 4)
SLOWER = Kind("slower-2", "steps take 2 times as long", 2, "--step-slowdown=2")


def cell(category: str, rounds: list[float | None], baseline: float | None) -> dict[str, Any]:
    """A cell as results have it, with figures of output TPS alone."""
    return {
        "split": "qualitative",
        "category": category,
        "batch_size": 2,
        "rounds": [{"output_tps": value} for value in rounds],
        "verdicts": {"output_tps": {"baseline": baseline}},
    }


def test_today_s_rules_see_the_median_of_the_first_three_rounds() -> None:
    coding = cell("coding", [80.0, 90.0, 70.0, 100.0, 100.0, 100.0, 100.0], 100.0)
    assert first_ratio(coding, [coding], "output_tps") == pytest.approx(0.8)


def test_a_mean_is_taken_over_its_categories() -> None:
    cells = [cell("coding", [80.0], 100.0), cell("qa", [40.0], 20.0), cell("mean", [], 60.0)]
    cells.append({**cell("qa", [1.0], 1.0), "batch_size": 4})
    assert first_ratio(cells[2], cells, "output_tps") == pytest.approx(1.0)


def test_there_is_no_ratio_without_a_figure_or_a_baseline() -> None:
    for without in (cell("qa", [None], 1.0), cell("qa", [], 1.0), cell("qa", [1.0], None)):
        assert first_ratio(without, [without], "output_tps") is None


@pytest.mark.parametrize(
    ("ratio", "floor", "band"),
    [
        (0.94, True, True),
        (0.96, False, False),
        (1.04, False, False),
        (1.06, False, True),
        (None, False, False),
    ],
)
def test_today_s_rules(ratio: float | None, floor: bool, band: bool) -> None:
    check = Judged("output_tps", "qa", 2, "regression", 0.9, ratio, 0.05, 0.1, "system")
    assert (check.fails(FLOOR), check.fails(BAND)) == (floor, band)
    assert check.fails(OURS)
    assert not replace(check, verdict="inconclusive").fails(OURS)


def test_a_run_fails_where_pytest_did_whatever_the_checks_say() -> None:
    about = About([], 1, "", "", 1.0, 1.0, 0.0)
    assert Run("invalid", about, {"cells": []}).fails(OURS)
    assert not Run("passed", replace(about, exit_status=0), {"cells": []}).fails(OURS)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands of the runs that were started; pytest itself is not."""
    commands: list[list[str]] = []

    def run_pytest(folder: Path, command: list[str]) -> About:
        saving = "--speedbench-save" in command
        if saving:
            (folder / "baselines").mkdir()
        assert (folder / "baselines").is_dir()
        assert all(name in (folder / "test_gate.py").read_text() for name in real_runs.METRICS)
        (folder / "output.txt").write_text("")
        (folder / "results.json").write_text(json.dumps({"cells": []}))
        commands.append(command)
        return About(command, 0, "", "", 1.0, 1.0, 0.0)

    monkeypatch.setattr(real_runs, "run_pytest", run_pytest)
    return commands


def test_the_baseline_is_saved_first_and_kinds_are_mixed(tmp_path: Path, started: list[list[str]]) -> None:
    runs = all_runs(tmp_path, (NOTHING, SLOWER), 20)
    assert {kind.name: len(found) for kind, found in runs.items()} == {"unchanged": 4, "slower-2": 2}
    slower = ["--speedbench-engine-arg=--step-slowdown=2" in command for command in started]
    assert slower == [False, False, True, False, False, True, False]
    assert ["--speedbench-save" in command for command in started] == [True] + [False] * 6


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path, started: list[list[str]]) -> None:
    all_runs(tmp_path, (replace(NOTHING, runs=1),), 20)
    (tmp_path / "unchanged-02").mkdir()
    started.clear()
    all_runs(tmp_path, (NOTHING,), 20)
    assert len(started) == 3


def test_runs_of_other_options_are_not_mixed(tmp_path: Path, started: list[list[str]]) -> None:
    all_runs(tmp_path, (NOTHING,), 20)
    with pytest.raises(RuntimeError, match="baseline is of a run with other options"):
        all_runs(tmp_path, (NOTHING,), 21)


def test_a_baseline_that_failed_is_no_baseline(tmp_path: Path, started: list[list[str]]) -> None:
    run_pytest = real_runs.run_pytest
    with (
        mock.patch.object(real_runs, "run_pytest", lambda *given: replace(run_pytest(*given), exit_status=1)),
        pytest.raises(RuntimeError, match="the baseline was not saved"),
    ):
        all_runs(tmp_path, (NOTHING,), 20)
    assert not (tmp_path / "baseline").exists()
