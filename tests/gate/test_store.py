from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import stat
import time
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
    Baseline,
    Conditions,
    merge,
    rounded,
    stored_measurement,
)
from pytest_speedbench.gate.store import add, load, save, texts_of
from pytest_speedbench.metrics.measurement import Measurement, PromptTally, RoundFigures
from pytest_speedbench.speed_bench import DOMAINS, SPLITS, categories_of
from tests.gate.measurements import CELL, CONDITIONS, HARDWARE, STEPS, baseline_of, measurement

SESSION = "2026-11-23-4c907f"
"""Of `CONDITIONS`."""

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
awkward = texts | st.sampled_from(
    ["no", "null", "1e5", "0x1f", "12345678", "2026-11-23", "~", "a: b", "# c", "'", "", "\x85", "a\nb"]
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
tallies = st.builds(
    PromptTally,
    question_id=awkward,
    digest=awkward,
    requests=some,
    output_tokens=counts,
    steps=st.none() | counts,
    drafted_steps=st.none() | counts,
    accepted_per_position=st.none() | st.lists(counts, max_size=4).map(tuple),
    steps_exact=st.booleans(),
)
maybe = st.none() | positive
round_figures = st.builds(RoundFigures, positive, maybe, maybe, maybe, maybe)
metrics = st.fixed_dictionaries(
    {"acceptance_length": positive, "output_tps": positive},
    optional={"drafted_acceptance_length": positive, "user_tps": positive, "step_latency_s_mean": positive},
)


@st.composite
def measurements(draw: st.DrawFn) -> list[Measurement]:
    return [
        replace(
            stored_measurement(
                cell, draw(metrics), draw(st.lists(tallies, max_size=3, unique_by=lambda t: t.question_id))
            ),
            per_position={"conditional_acceptance_rate": tuple(draw(st.lists(st.floats(0, 1), max_size=4)))},
            rounds=tuple(draw(st.lists(round_figures, min_size=1, max_size=3))),
            tokenization=draw(awkward),
            prompt_tokens=draw(counts),
        )
        for cell in draw(st.lists(cells, max_size=3, unique=True))
    ]


@st.composite
def baselines(draw: st.DrawFn) -> Baseline:
    """What up to two runs have saved."""
    target, baseline = draw(texts), None
    for run in draw(st.lists(conditions, min_size=1, max_size=2)):
        run = replace(run, method="none")
        baseline = merge(target, baseline, draw(measurements()), run, draw(awkward)).baseline
    assert baseline is not None
    return baseline


@settings(deadline=None, max_examples=60)
@given(baselines())
def test_what_is_saved_is_what_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, baseline: Baseline
) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip" / "target.yaml"
    save(path, baseline)
    assert load(path) == baseline
    yaml_text, prompts_text = texts_of(baseline)
    assert path.read_text("utf-8") == yaml_text
    [prompts] = path.parent.glob("*.json")
    assert prompts.read_text("utf-8") == prompts_text


def test_what_merge_gives_is_what_is_loaded(tmp_path: Path) -> None:
    baseline = baseline_of(measurement(step_s=1 / 30, metrics={"speedup": 5 / 3}))
    save(tmp_path / "llama.yaml", baseline)
    assert load(tmp_path / "llama.yaml") == baseline


def test_no_file_is_no_baseline(tmp_path: Path) -> None:
    assert load(tmp_path / "none.yaml") is None
    assert load(tmp_path / "no" / "folder.yaml") is None


def test_the_file_is_made_for_reading() -> None:
    yaml_text, prompts_text = texts_of(baseline_of(measurement(STEPS[:2])))
    assert yaml_text == (
        """\
# Baseline of pytest-speedbench. Written, and to be updated, with `pytest ... --speedbench-save`.
# The prompts of every cell are in the generated file beside it that prompts_sha256 names.
schema_version: 2
target: llama
prompts_sha256: DIGEST
sessions:
  SESSION:
    date: '2026-11-23T12:00:00+00:00'
    plugin_version: 0.1.0
    engine: vllm
    engine_version: 0.31.0
    method: eagle3
    draft_length: 3
    temperature: 0.0
    ignore_eos: true
    seed: 0
    output_length: 128
    dataset: sample
    commit: 0123abc
    model: meta-llama/Llama-3.3-70B-Instruct
    draft_model: nvidia/Llama-3.3-70B-Instruct-Eagle3
    engine_args: [--tensor-parallel-size=8]
    environment: {}
    rounds: 3
    tokenization: engine
    counter_source: response
acceptance:
  NVIDIA H100 80GB HBM3 x 8:
    qualitative-coding-bs32:
      session: SESSION
      metrics: {acceptance_length: 2.98824, drafted_acceptance_length: 2.98824}
      conditional_acceptance_rate: [0.964706, 0.719512, 0.474576]
      prompts: 2
      prompt_tokens: 20
      rounds: {acceptance_length: [2.98824, 2.98824, 2.98824]}
throughput:
  NVIDIA H100 80GB HBM3 x 8:
    qualitative-coding-bs32:
      session: SESSION
      metrics: {output_tps: 269.474, user_tps: 298.824, step_latency_s_mean: 0.01}
      rounds: {output_tps: [266.779, 269.474, 272.168], user_tps: [295.835, 298.824, 301.812], acceptance_length: [2.98824, 2.98824, 2.98824], step_latency_s: [0.010101, 0.01, 0.00990099]}
"""
    ).replace("DIGEST", hashlib.sha256(prompts_text.encode()).hexdigest()).replace("SESSION", SESSION)
    assert prompts_text == (
        """\
{
"columns": ["id", "digest", "requests", "tokens", "steps", "drafted", "accepted", "steps_exact"],
"cells": {
"NVIDIA H100 80GB HBM3 x 8": {
"qualitative-coding-bs32": {
"SESSION": [
["q0","00000000000000q0",1,128,40,40,[40,32,15],true],
["q1","00000000000000q1",1,128,45,45,[42,27,13],true]
]}}}
}
"""
    ).replace("SESSION", SESSION)


def test_a_session_is_named_by_its_date_and_all_else_that_is_known_of_it() -> None:
    others = [replace(CONDITIONS, commit="fedcba9"), replace(CONDITIONS, environment={"VLLM_X": "1"})]
    names = set()
    for run in (CONDITIONS, CONDITIONS, *others):
        names.update(yaml.safe_load(texts_of(baseline_of(conditions=run))[0])["sessions"])
    assert len(names) == 3
    assert all(re.fullmatch("2026-11-23-[0-9a-f]{6}", name) for name in names)


def test_a_replaced_cell_changes_its_own_lines_only() -> None:
    cells = [CELL, replace(CELL, category="math")]
    before = texts_of(baseline_of(*(measurement(cell=cell) for cell in cells)))
    after = texts_of(baseline_of(measurement(cell=CELL), measurement([*STEPS[:-1], 90], cell=cells[1])))
    changed, prompts = (
        [one for one, other in zip(text.splitlines(), others.splitlines(), strict=True) if one != other]
        for text, others in zip(before, after, strict=True)
    )
    assert [line.split(":")[0].strip() for line in changed] == [
        "prompts_sha256",
        "metrics",
        "conditional_acceptance_rate",
        "rounds",
        "metrics",
        "rounds",
    ]
    assert ["q7" in line for line in prompts] == [True]


def whole_run() -> Baseline:
    """Of 11 categories with 80 prompts at three batch sizes, in nine rounds."""
    return baseline_of(
        *(
            measurement(
                [40 + number % 40 for number in range(80)],
                cell=Cell("qualitative", name, size),
                speeds=[1 + n / 100 for n in range(9)],
            )
            for name in DOMAINS
            for size in (1, 32, 128)
        )
    )


def test_a_whole_run_is_read_by_a_reviewer_and_in_no_time(tmp_path: Path) -> None:
    baseline = whole_run()
    save(tmp_path / "llama.yaml", baseline)
    assert len((tmp_path / "llama.yaml").read_text().splitlines()) < 400
    start = time.process_time()
    assert load(tmp_path / "llama.yaml") == baseline
    assert time.process_time() - start < 1


def written(path: Path, change: Callable[[Any], object]) -> Path:
    """A baseline file with something changed by hand."""
    save(path, baseline_of())
    document = yaml.safe_load(path.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda d: d.update(schema_version=3),
            "schema_version 3 was written by a newer pytest-speedbench (this one knows 2); upgrade pytest-speedbench",
        ),
        (lambda d: d.update(schema_version=0), "schema_version: 2 was expected; restore it"),
        (lambda d: d.update(schema_version=1), "not a baseline of schema_version 1: "),
        (lambda d: d.pop("acceptance"), "the document: 'acceptance' is a required property; restore it"),
        (
            lambda d: d["acceptance"][HARDWARE][CELL.id]["metrics"].update(acceptance_length="high"),
            f"acceptance.{HARDWARE}.{CELL.id}.metrics.acceptance_length: 'high' is not of type 'number'; restore it",
        ),
        (
            lambda d: d["acceptance"][HARDWARE][CELL.id]["metrics"].update(acceptance_length=float("nan")),
            f"{CELL.id}.metrics.acceptance_length: nan is not a number to compare with; restore it",
        ),
        (
            lambda d: d["throughput"][HARDWARE][CELL.id]["metrics"].update(output_tps=0),
            f"{CELL.id}.metrics.output_tps: 0 is less than or equal to the minimum of 0; restore it",
        ),
        (
            lambda d: d["acceptance"][HARDWARE][CELL.id].update(acceptance_lenght=3.0),
            "Additional properties are not allowed ('acceptance_lenght' was unexpected); restore it",
        ),
        (
            lambda d: d["acceptance"][HARDWARE].update(
                {"qualitative-code-bs32": d["acceptance"][HARDWARE].pop(CELL.id)}
            ),
            f"acceptance.{HARDWARE}.qualitative-code-bs32: the file of prompts has 0 prompts of",
        ),
        (
            lambda d: d["acceptance"][HARDWARE][CELL.id].update(session="run-9"),
            f"acceptance.{HARDWARE}.{CELL.id}.session: 'run-9' is not one of `sessions`; restore it",
        ),
        (
            lambda d: d["acceptance"][HARDWARE][CELL.id].update(prompts=9),
            f"acceptance.{HARDWARE}.{CELL.id}: the file of prompts has 8 prompts of {SESSION}, not 9; restore it",
        ),
        (
            lambda d: d["throughput"][HARDWARE][CELL.id]["rounds"]["output_tps"].pop(),
            f"throughput.{HARDWARE}.{CELL.id}.rounds: columns are of 2 and 3 rounds; restore it",
        ),
        (
            lambda d: d["throughput"][HARDWARE][CELL.id]["rounds"].update(watts=[1, 2, 3]),
            f"throughput.{HARDWARE}.{CELL.id}.rounds: watts is not a figure of a round; restore it",
        ),
        (
            lambda d: d.update(prompts_sha256="0" * 64),
            "its prompts are in llama.000000000000.prompts.json, which cannot be read: No such file or directory; "
            "commit both files together",
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
        (b"", "whose content is not the one that prompts_sha256 names"),
        (b"[]", "whose content is not the one that prompts_sha256 names"),
    ],
)
def test_prompts_that_are_not_those_of_the_baseline_are_refused(
    tmp_path: Path, content: bytes, line: str
) -> None:
    path = tmp_path / "llama.yaml"
    save(path, baseline_of())
    [prompts] = tmp_path.glob("*.json")
    prompts.write_bytes(content)
    with pytest.raises(BaselineError, match=rf"its prompts are in {prompts.name}, {line}"):
        load(path)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            ("1,128,40", "-1,128,40"),
            "which does not hold them: Expected `int` >= 1 - at `$.cells[...][...][...][0][2]`",
        ),
        (('"q1"', '"q0"'), "prompt 'q0' is there twice"),
        (('"tokens"', '"token"'), "whose columns are id, digest, requests, token, steps"),
        (("{", "[", 1), "which does not hold them: Expected `object`, got `array`"),
    ],
)
def test_prompts_that_do_not_fit_give_one_line(tmp_path: Path, change: Any, line: str) -> None:
    path = tmp_path / "llama.yaml"
    save(path, baseline_of())
    [prompts] = tmp_path.glob("*.json")
    content = prompts.read_text().replace(*change)
    prompts.unlink()
    digest = hashlib.sha256(content.encode()).hexdigest()
    (tmp_path / f"llama.{digest[:12]}.prompts.json").write_text(content)
    document = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**document, "prompts_sha256": digest}))
    with pytest.raises(BaselineError) as caught:
        load(path)
    assert line in str(caught.value)


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
    before, files_before = path.read_bytes(), sorted(os.listdir(tmp_path))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, broken, fail)
        with pytest.raises(BaselineError, match=r"cannot be written: No space left .* unchanged"):
            save(path, baseline_of(measurement([count + 1 for count in STEPS])))
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == files_before


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "baselines").touch()
    with pytest.raises(BaselineError, match=r"baselines/llama\.yaml: cannot be written: "):
        save(tmp_path / "baselines" / "llama.yaml", baseline_of())


@pytest.mark.parametrize(
    "wrong",
    [
        replace(baseline_of(), target=""),
        baseline_of(conditions=replace(CONDITIONS, temperature=float("nan"))),
    ],
)
def test_what_could_not_be_loaded_is_not_written(tmp_path: Path, wrong: Baseline) -> None:
    path = tmp_path / "llama.yaml"
    save(path, baseline_of())
    with pytest.raises(BaselineError, match="baseline not written: "):
        save(path, wrong)
    assert load(path) == baseline_of()


OLD = """\
schema_version: 1
target: "llama"
runs:
  run-1: {date: "2026-11-23", plugin_version: "0.1.0", engine: "vllm", engine_version: "0.31.0", method: "eagle3", draft_length: 3, temperature: 0.0, ignore_eos: true, seed: 0, output_length: 128, dataset: "sample", rounds: 2}
  run-2: {date: "2026-11-24", plugin_version: "0.1.0", engine: "vllm", engine_version: "0.32.0", method: "eagle3", draft_length: 3, temperature: 0.0, ignore_eos: true, seed: 0, output_length: 128, dataset: "sample", rounds: 2}
acceptance:
  qualitative-coding-bs32:
    run: "run-2"
    split: "qualitative"
    category: "coding"
    batch_size: 32
    acceptance_length: 2.98824
    conditional_acceptance_rate: [0.9, 0.7, 0.4]
    prompt_tokens: 20
    round_acceptance_length: [2.98824, 2.98824]
    prompts:
    - {id: "q0", digest: "00000000000000q0", requests: 1, tokens: 128, steps: 40, drafted: 40, accepted: [40, 32, 15]}
  qualitative-math-bs32:
    run: "run-2"
    split: "qualitative"
    category: "math"
    batch_size: 32
    acceptance_length: 2.5
    prompt_tokens: 20
    round_acceptance_length: [2.5, 2.5]
    prompts: []
throughput:
  "CPU x 4":
    qualitative-coding-bs32: {run: "run-2", split: "qualitative", category: "coding", batch_size: 32, output_tps: 9.5, step_latency_s: 0.3, rounds: [{output_tps: 9.5}, {output_tps: 9.5, user_tps: 3.5}], prompts: [{id: "q0", digest: "00000000000000q0", requests: 1, tokens: 128}]}
  "H100 x 8":
    qualitative-coding-bs32: {run: "run-1", split: "qualitative", category: "coding", batch_size: 32, output_tps: 269.474, rounds: [{output_tps: 269.474}], prompts: [{id: "q0", digest: "00000000000000q0", requests: 1, tokens: 128}]}
"""


def test_an_old_file_is_read_and_the_next_save_converts_it(tmp_path: Path) -> None:
    path = tmp_path / "llama.yaml"
    path.write_text(OLD)
    old = load(path)
    assert old is not None
    assert {key: list(of) for key, of in old.acceptance.items()} == {
        "CPU x 4": ["qualitative-coding-bs32"],  # whose throughput the same run stored
        "unknown": ["qualitative-math-bs32"],
    }
    coding = old.acceptance["CPU x 4"]["qualitative-coding-bs32"]
    assert (coding.conditions.engine_version, coding.measurement.prompts[0].steps) == ("0.32.0", 40)
    here = old.throughput["CPU x 4"]["qualitative-coding-bs32"].measurement
    assert here.metrics == {"output_tps": 9.5, "step_latency_s_mean": 0.3}
    assert [figures.user_tps for figures in here.rounds] == [None, 3.5]
    there = old.throughput["H100 x 8"]["qualitative-coding-bs32"]
    assert (there.conditions.engine_version, there.measurement.prompts[0].steps) == ("0.31.0", None)
    add(path, "llama", [measurement(cell=Cell("qualitative", "qa", 32))], CONDITIONS, "CPU x 4")
    assert "schema_version: 2" in path.read_text()
    new = load(path)
    assert new is not None
    assert new.acceptance["unknown"] == old.acceptance["unknown"]
    assert new.acceptance["CPU x 4"]["qualitative-coding-bs32"] == coding
    assert new.throughput["H100 x 8"] == old.throughput["H100 x 8"]


def changed() -> Baseline:
    return baseline_of(measurement([count + 1 for count in STEPS]))


def test_prompts_of_the_last_save_are_all_that_is_left(tmp_path: Path) -> None:
    path = tmp_path / "llama.yaml"
    (tmp_path / "llama-2.0123456789ab.prompts.json").touch()  # of another target
    save(path, baseline_of())
    save(path, changed())
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert load(path) == changed()


@pytest.mark.parametrize("number", [1, 2])
def test_a_save_that_is_killed_between_its_two_files_leaves_a_whole_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path, calls = tmp_path / "llama.yaml", []
    save(path, baseline_of())
    rename = os.replace

    def killed(*names: Any) -> None:
        rename(*names)
        calls.append(names)
        if len(calls) == number:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save(path, changed())
    assert load(path) == (baseline_of() if number == 1 else changed())
    save(path, changed())
    assert len(os.listdir(tmp_path)) == 2


def _save_one(path: Path, category: str) -> None:
    add(path, "llama", [measurement(cell=Cell("qualitative", category, 32))], CONDITIONS, HARDWARE)


def test_two_runs_that_save_at_the_same_time_are_both_kept(tmp_path: Path) -> None:
    path = tmp_path / "llama.yaml"
    fork = multiprocessing.get_context("fork")
    savers = [fork.Process(target=_save_one, args=(path, category)) for category in DOMAINS[:4]]
    for saver in savers:
        saver.start()
    for saver in savers:
        saver.join()
    baseline = load(path)
    assert baseline is not None
    assert sorted(baseline.acceptance[HARDWARE]) == sorted(f"qualitative-{name}-bs32" for name in DOMAINS[:4])
