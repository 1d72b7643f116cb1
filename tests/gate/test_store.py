from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import BaselineError
from pytest_speedbench.gate.baseline import (
    AcceptanceCell,
    AcceptancePrompt,
    Baseline,
    Conditions,
    ThroughputCell,
    ThroughputPrompt,
    rounded,
)
from pytest_speedbench.gate.store import load, save, text_of
from pytest_speedbench.metrics.measurement import RoundFigures
from pytest_speedbench.speed_bench import SPLITS, categories_of
from tests.gate.measurements import CELL, CONDITIONS, HARDWARE, STEPS, baseline_of, measurement

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
awkward = texts | st.sampled_from(
    ["no", "null", "1e5", "0x1f", "12345678", "2026-11-23", "~", "a: b", "# c", "'", ""]
)
positive = st.floats(1e-9, 1e9).map(rounded)
counts = st.integers(0, 10**9)
some = st.integers(1, 10**6)
cells = st.sampled_from(SPLITS).flatmap(
    lambda split: st.builds(Cell, st.just(split), st.sampled_from(categories_of(split)), st.integers(1, 512))
)
conditions = st.builds(
    Conditions,
    date=awkward,
    plugin_version=awkward,
    engine=awkward,
    engine_version=awkward,
    method=awkward,
    draft_length=counts,
    temperature=st.floats(0, 5).map(rounded),
    ignore_eos=st.booleans(),
    seed=st.integers(-(10**9), 10**9),
    output_length=some,
    dataset=awkward,
    commit=st.none() | awkward,
    model=st.none() | awkward,
    draft_model=st.none() | awkward,
    engine_args=st.lists(awkward, max_size=3).map(tuple),
    rounds=some,
    tokenization=awkward,
    counter_source=st.none() | awkward,
)
acceptance_prompts = st.builds(
    AcceptancePrompt,
    awkward,
    awkward,
    some,
    counts,
    st.none() | counts,
    st.none() | counts,
    st.none() | st.lists(counts, max_size=4).map(tuple),
)
throughput_prompts = st.builds(
    ThroughputPrompt,
    awkward,
    awkward,
    some,
    counts,
)
maybe = st.none() | positive
round_figures = st.builds(RoundFigures, positive, maybe, maybe, maybe, maybe)


@st.composite
def baselines(draw: st.DrawFn) -> Baseline:
    runs = {
        f"run-{number}": run for number, run in enumerate(draw(st.lists(conditions, min_size=1, max_size=2)))
    }
    run = st.sampled_from(sorted(runs))

    def prompts(kind: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.lists(kind, max_size=3, unique_by=lambda prompt: prompt.id).map(tuple)

    def by_id(strategy: Callable[[Cell], st.SearchStrategy[Any]]) -> dict[str, Any]:
        return {cell.id: draw(strategy(cell)) for cell in draw(st.lists(cells, max_size=3))}

    def acceptance(cell: Cell) -> st.SearchStrategy[AcceptanceCell]:
        rates = st.lists(st.floats(0, 1).map(rounded), max_size=4).map(tuple)
        return st.builds(
            AcceptanceCell,
            st.just(cell),
            run,
            positive,
            st.none() | positive,
            rates,
            counts,
            st.lists(positive, max_size=3).map(tuple),
            prompts(acceptance_prompts),
        )

    def throughput(cell: Cell) -> st.SearchStrategy[ThroughputCell]:
        return st.builds(
            ThroughputCell,
            st.just(cell),
            run,
            positive,
            maybe,
            maybe,
            maybe,
            st.lists(round_figures, min_size=1, max_size=3).map(tuple),
            prompts(throughput_prompts),
        )

    hardware = draw(st.lists(awkward, max_size=2, unique=True))
    return Baseline(draw(texts), runs, by_id(acceptance), {key: by_id(throughput) for key in hardware})


@settings(deadline=None, max_examples=60)
@given(baselines())
def test_what_is_saved_is_what_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, baseline: Baseline
) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip" / "target.yaml"
    save(path, baseline)
    assert load(path) == baseline
    assert path.read_text("utf-8") == text_of(baseline)


def test_what_merge_gives_is_what_is_loaded(tmp_path: Path) -> None:
    baseline = baseline_of(measurement(step_s=1 / 30, metrics={"speedup": 5 / 3}))
    save(tmp_path / "llama.yaml", baseline)
    assert load(tmp_path / "llama.yaml") == baseline


def test_no_file_is_no_baseline(tmp_path: Path) -> None:
    assert load(tmp_path / "none.yaml") is None
    assert load(tmp_path / "no" / "folder.yaml") is None


def test_the_file_is_made_for_reading() -> None:
    assert text_of(baseline_of(measurement(STEPS[:2]))) == (
        """\
# Baseline of pytest-speedbench. Written, and to be updated, with `pytest ... --speedbench-save`.
# acceptance compares across machines; throughput only on the hardware it is filed under.
schema_version: 1
target: "llama"
runs:
  run-1:
    date: "2026-11-23T12:00:00+00:00"
    plugin_version: "0.1.0"
    engine: "vllm"
    engine_version: "0.31.0"
    method: "eagle3"
    draft_length: 3
    temperature: 0.0
    ignore_eos: true
    seed: 0
    output_length: 128
    dataset: "sample"
    commit: "0123abc"
    model: "meta-llama/Llama-3.3-70B-Instruct"
    draft_model: "nvidia/Llama-3.3-70B-Instruct-Eagle3"
    engine_args: ["--tensor-parallel-size=8"]
    rounds: 3
    tokenization: "engine"
    counter_source: "response"
acceptance:
  qualitative-coding-bs32:
    run: "run-1"
    split: "qualitative"
    category: "coding"
    batch_size: 32
    acceptance_length: 2.98824
    drafted_acceptance_length: 2.98824
    conditional_acceptance_rate: [0.964706, 0.719512, 0.474576]
    prompt_tokens: 20
    round_acceptance_length: [2.98824, 2.98824, 2.98824]
    prompts:
    - {id: "q0", digest: "00000000000000q0", requests: 1, tokens: 128, steps: 40, drafted: 40, accepted: [40, 32, 15]}
    - {id: "q1", digest: "00000000000000q1", requests: 1, tokens: 128, steps: 45, drafted: 45, accepted: [42, 27, 13]}
throughput:
  "NVIDIA H100 80GB HBM3 x 8":
    qualitative-coding-bs32:
      run: "run-1"
      split: "qualitative"
      category: "coding"
      batch_size: 32
      output_tps: 269.474
      user_tps: 298.824
      step_latency_s: 0.01
      rounds:
      - {output_tps: 266.779, user_tps: 295.835, acceptance_length: 2.98824, step_latency_s: 0.010101}
      - {output_tps: 269.474, user_tps: 298.824, acceptance_length: 2.98824, step_latency_s: 0.01}
      - {output_tps: 272.168, user_tps: 301.812, acceptance_length: 2.98824, step_latency_s: 0.00990099}
      prompts:
      - {id: "q0", digest: "00000000000000q0", requests: 1, tokens: 128}
      - {id: "q1", digest: "00000000000000q1", requests: 1, tokens: 128}
"""
    )


def test_a_replaced_cell_changes_its_own_lines_only() -> None:
    cells = [CELL, replace(CELL, category="math")]
    before = text_of(baseline_of(*(measurement(cell=cell) for cell in cells))).splitlines()
    after = text_of(
        baseline_of(measurement(cell=CELL), measurement([*STEPS[:-1], 90], cell=cells[1]))
    ).splitlines()
    assert len(before) == len(after)
    changed = [line for line, other in zip(before, after, strict=True) if line != other]
    assert [line.split(":")[0].strip() for line in changed if not line.lstrip().startswith("-")] == [
        "acceptance_length",
        "drafted_acceptance_length",
        "conditional_acceptance_rate",
        "round_acceptance_length",
        "output_tps",
        "user_tps",
    ]
    rows = [line for line in changed if line.lstrip().startswith("-")]
    assert ["q7" in line for line in rows] == [True, False, False, False]
    assert ["output_tps" in line for line in rows] == [False, True, True, True]


def written(path: Path, change: Callable[[Any], object]) -> Path:
    """A baseline file with something changed by hand."""
    document = yaml.safe_load(text_of(baseline_of()))
    change(document)
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda d: d.update(schema_version=2),
            "schema_version 2 was written by a newer pytest-speedbench (this one knows 1); upgrade pytest-speedbench",
        ),
        (lambda d: d.update(schema_version=0), "schema_version: 1 was expected; restore it"),
        (lambda d: d.pop("acceptance"), "the document: 'acceptance' is a required property; restore it"),
        (
            lambda d: d["acceptance"][CELL.id].update(acceptance_length="high"),
            f"acceptance.{CELL.id}.acceptance_length: 'high' is not of type 'number'; restore it",
        ),
        (
            lambda d: d["acceptance"][CELL.id].update(acceptance_length=float("nan")),
            f"acceptance.{CELL.id}.acceptance_length: nan is no number to compare with; restore it",
        ),
        (
            lambda d: d["throughput"][HARDWARE][CELL.id].update(output_tps=0),
            f"throughput.{HARDWARE}.{CELL.id}.output_tps: 0 is less than or equal to the minimum of 0; restore it",
        ),
        (
            lambda d: d["acceptance"][CELL.id]["prompts"][2].update(steps=-1),
            f"acceptance.{CELL.id}.prompts.2.steps: -1 is less than the minimum of 0; restore it",
        ),
        (
            lambda d: d["acceptance"][CELL.id].update(acceptance_lenght=3.0),
            "Additional properties are not allowed ('acceptance_lenght' was unexpected); restore it",
        ),
        (
            lambda d: d["acceptance"][CELL.id].update(batch_size=64),
            f"acceptance.{CELL.id}: holds split, category and batch_size of qualitative-coding-bs64; restore it",
        ),
        (
            lambda d: d["acceptance"][CELL.id].update(category="code"),
            f"acceptance.{CELL.id}.category: qualitative has no category 'code'; restore it",
        ),
        (
            lambda d: d["acceptance"][CELL.id].update(run="run-9"),
            f"acceptance.{CELL.id}.run: 'run-9' is not one of `runs`; restore it",
        ),
        (
            lambda d: d["acceptance"][CELL.id]["prompts"].append(d["acceptance"][CELL.id]["prompts"][0]),
            f"acceptance.{CELL.id}.prompts: 'q0' is there twice; restore it",
        ),
    ],
)
def test_a_file_that_does_not_fit_gives_one_line(
    tmp_path: Path, change: Callable[[Any], object], line: str
) -> None:
    path = written(tmp_path / "llama.yaml", change)
    with pytest.raises(BaselineError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"baseline {path}: ")
    assert line in message
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"runs: [\n", ", line 2, column 1: "),
        (b"target: a\ntarget: b\n", ", line 2: 'target' is given twice"),
        (b"target: \xff\xfe\n", ": is not UTF-8 text"),
        (b"", ": the document: None is not of type 'object'"),
        (b"just words\n", ": the document: 'just words' is not of type 'object'"),
        (b"? [a, b]\n: 1\n", ": unhashable type: 'list'"),
        (b"date: 2026-13-45\n", ": month must be in 1..12"),
        (b"target: !!python/object:os.system x\n", ", line 1, column 9: "),
    ],
)
def test_a_file_that_is_no_baseline_gives_one_line(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "llama.yaml"
    path.write_bytes(content)
    with pytest.raises(BaselineError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"baseline {path}{line}")
    assert message.endswith(
        "restore it from version control, or delete it and write it anew with --speedbench-save"
    )
    assert "\n" not in message


def test_a_folder_is_not_a_baseline(tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match="cannot be read: Is a directory"):
        load(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_not_taken_for_no_baseline(tmp_path: Path) -> None:
    path = tmp_path / "llama.yaml"
    save(path, baseline_of())
    path.chmod(0)
    with pytest.raises(BaselineError, match="cannot be read: Permission denied"):
        load(path)


def test_a_new_file_has_the_mode_that_any_file_here_gets(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    save(tmp_path / "made" / "llama.yaml", baseline_of())
    assert (tmp_path / "made" / "llama.yaml").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_old_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "llama.yaml"
    save(path, baseline_of())
    path.chmod(0o640)
    save(path, baseline_of(measurement([count + 1 for count in STEPS])))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    save(real, baseline_of())
    link.symlink_to(real)
    changed = baseline_of(measurement([count + 1 for count in STEPS]))
    save(link, changed)
    assert link.is_symlink()
    assert load(real) == changed


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "llama.yaml"
    save(path, baseline_of())
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, broken, fail)
        with pytest.raises(BaselineError, match=r"cannot be written: No space left .* unchanged"):
            save(path, baseline_of(measurement([count + 1 for count in STEPS])))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["llama.yaml"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "baselines").touch()
    with pytest.raises(BaselineError, match=r"baselines/llama\.yaml: cannot be written: "):
        save(tmp_path / "baselines" / "llama.yaml", baseline_of())


@pytest.mark.parametrize(
    "wrong",
    [
        replace(baseline_of(), target=""),
        replace(baseline_of(), runs={}),
        baseline_of(conditions=replace(CONDITIONS, temperature=float("nan"))),
    ],
)
def test_what_could_not_be_loaded_is_not_written(tmp_path: Path, wrong: Baseline) -> None:
    path = tmp_path / "llama.yaml"
    save(path, baseline_of())
    with pytest.raises(BaselineError, match="baseline not written: "):
        save(path, wrong)
    assert load(path) == baseline_of()
