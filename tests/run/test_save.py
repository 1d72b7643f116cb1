"""What a save writes, and what it says of what it wrote or did not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_speedbench.engines.base import Hardware
from pytest_speedbench.gate.store import load
from pytest_speedbench.metrics.measurement import Measurement
from pytest_speedbench.run.save import counted, save_run
from pytest_speedbench.settings.read import Settings
from tests.gate.measurements import CELL, CONDITIONS, measurement
from tests.run.diary import settings as settings_of

HARDWARE = Hardware("NVIDIA H100 80GB HBM3", 8)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(baselines=str(tmp_path))


def save(
    settings: Settings,
    measurements: Sequence[Measurement],
    *,
    hardware: Hardware | None = HARDWARE,
    why_not: str | None = None,
    commit: str | None = "0123abc",
) -> tuple[bool, list[str]]:
    return save_run(
        settings,
        measurements,
        replace(CONDITIONS, commit=commit),
        hardware,
        why_not=why_not,
        shown=lambda path: path.name,
    )


def test_everything_is_stored_and_the_file_named(settings: Settings) -> None:
    saved, messages = save(settings, [measurement(), measurement(cell=replace(CELL, category="math"))])
    assert saved
    assert messages == [
        "saved 2 cells to reference-draft_model-k3.yaml; look at the change before you commit it"
    ]
    baseline = load(settings.baseline_path)
    assert baseline is not None
    assert set(baseline.acceptance[HARDWARE.key]) == {"qualitative-coding-bs32", "qualitative-math-bs32"}


@pytest.mark.parametrize(
    ("measurements", "hardware", "why_not", "reason"),
    [
        ([measurement()], HARDWARE, "1 test failed", "1 test failed"),
        ([measurement()], None, "1 test failed", "1 test failed"),
        ([], HARDWARE, None, "no cell was measured"),
        ([measurement()], None, None, "no cell was measured"),
    ],
    ids=["a failed test", "an engine that never ran", "no cell", "no hardware"],
)
def test_what_must_not_be_saved_leaves_no_file(
    settings: Settings,
    measurements: list[Measurement],
    hardware: Hardware | None,
    why_not: str | None,
    reason: str,
) -> None:
    """The tests that failed have failed the run already: it is not the save's to fail it once more."""
    saved, messages = save(settings, measurements, hardware=hardware, why_not=why_not)
    assert (saved, messages) == (
        True,
        [f"nothing was saved to reference-draft_model-k3.yaml: {reason}"],
    )
    assert not settings.baseline_path.exists()


def test_one_measurement_that_is_refused_keeps_the_others_out(settings: Settings) -> None:
    broken = replace(measurement(cell=replace(CELL, category="math")), problems=("1 request failed",))
    saved, [message] = save(settings, [measurement(), broken])
    assert not saved
    assert message.startswith("nothing was saved: qualitative-math-bs32")
    assert not settings.baseline_path.exists()


def test_what_is_left_out_and_uncommitted_changes_are_said(settings: Settings) -> None:
    late = measurement()
    untimed = replace(
        late,
        metrics={"acceptance_length": late.metrics["acceptance_length"]},
        missing={"output_tps": "the load client was the bottleneck"},
        overload="the load client was the bottleneck",
    )
    saved, messages = save(settings, [untimed], commit="0123abc-dirty")
    assert saved
    assert len(messages) == 3
    assert "throughput" in messages[1] and "the load client was the bottleneck" in messages[1]
    assert messages[2].startswith("warning: measured with uncommitted changes (0123abc-dirty)")


@pytest.mark.parametrize(("number", "text"), [(0, "0 cells"), (1, "1 cell"), (2, "2 cells")])
def test_a_number_of_things(number: int, text: str) -> None:
    assert counted(number, "cell") == text
