"""The running engine as a test may use it: started when first needed, the same that is measured."""

from __future__ import annotations

from pathlib import Path

from pytest_speedbench.cells import Cell
from pytest_speedbench.run.running_engine import RunningEngine
from tests.run.diary import Run

CODING = Cell("qualitative", "coding", 4)


def test_its_name_and_target_are_known_before_it_runs() -> None:
    run = Run([CODING])
    run.main.settings = run.settings
    engine = RunningEngine(run.schedule)
    assert (engine.name, engine.target.name) == ("reference", "reference-draft_model-k3")
    assert run.diary == []


def test_what_only_a_running_engine_knows_starts_it_once() -> None:
    run = Run([CODING])
    engine = RunningEngine(run.schedule)
    run.main.log = Path("engine.log")
    assert (engine.url, engine.log) == ("http://A", Path("engine.log"))
    assert (engine.hardware.key, engine.version) == ("modelled accelerator x 1", "1.0")
    assert run.diary == ["start A"]


def test_it_is_started_anew_where_another_target_was_measured_meanwhile() -> None:
    run = Run([CODING], against=True, rounds="1")
    engine = RunningEngine(run.schedule)
    run.measure(CODING)
    assert not run.main.running, "targets that take turns do not run side by side"
    del run.diary[:]
    assert engine.url == "http://A"
    assert run.diary == ["start A"]
