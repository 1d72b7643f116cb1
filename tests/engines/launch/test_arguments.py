"""Checks and arguments that are the same for every engine that is launched from an interpreter."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_speedbench.engines.launch import arguments
from pytest_speedbench.errors import SettingsError
from pytest_speedbench.settings.methods import METHODS, method_of
from pytest_speedbench.settings.target import Target

TARGET = Target("t", "vllm", "draft_model", 3, model="acme/large", draft_model="acme/small")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (
            ("--tp-size", "2", "--verbose", "--model=x=y"),
            [("--tp-size", "2"), ("--verbose", ""), ("--model", "x=y")],
        ),
        (("--max_model_len=8",), [("--max-model-len", "8")]),
        (("-tp", "2", "3"), [("-tp", "2")]),
        (("positional",), []),
        (("--empty=", "value"), [("--empty", "")]),
    ],
)
def test_flags_and_their_values(given: tuple[str, ...], found: list[tuple[str, str]]) -> None:
    assert list(arguments.flags(given)) == found


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ((), 1),
        (("-tp", "4"), 4),
        (("-tp=2", "--tensor-parallel-size=4"), 4),
        (("-tp=2", "-pp=3"), 6),
        (("-tp=auto",), 1),
    ],
    ids=["none", "one", "the last counts", "two dimensions", "no number"],
)
def test_how_many_accelerators_are_asked_for(given: tuple[str, ...], size: int) -> None:
    dimensions = {"-tp": "tensor", "--tensor-parallel-size": "tensor", "-pp": "pipeline"}
    assert arguments.parallel_size(arguments.flags(given), dimensions) == size


def test_an_argument_that_is_the_plugins_to_give_is_refused_however_it_is_spelt() -> None:
    owned = {"--max-num-seqs": "use --speedbench-batch-size"}
    for given in ("--max-num-seqs=4", "--max_num_seqs=4"):
        with pytest.raises(
            SettingsError, match=r"^--speedbench-engine-arg=--max-num-seqs: use --speedbench-batch-size$"
        ):
            arguments.refuse_owned(arguments.flags([given]), owned)
    arguments.refuse_owned(arguments.flags(["--max-num-seqs-total=4"]), owned)


class TestModels:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("{}")
        (tmp_path / "empty").mkdir()
        return tmp_path

    @pytest.mark.parametrize("model", ["acme/large", "./model", "model", "{folder}/model"])
    def test_a_name_on_a_hub_or_a_folder_with_a_model_is_taken(self, folder: Path, model: str) -> None:
        target = replace(TARGET, model=model.format(folder=folder))
        arguments.refuse_models(target, method_of("draft_model"))

    @pytest.mark.parametrize(
        ("model", "words"),
        [
            (None, "--speedbench-engine=vllm needs --speedbench-model"),
            ("./missing", r"--speedbench-model=\./missing: there is no such folder"),
            ("empty", "--speedbench-model=empty: holds no model, for it has no config.json"),
        ],
    )
    def test_what_holds_no_model_is_refused(self, folder: Path, model: str | None, words: str) -> None:
        with pytest.raises(SettingsError, match=f"^{words}"):
            arguments.refuse_models(replace(TARGET, model=model), method_of("draft_model"))

    def test_a_draft_model_is_asked_for_where_the_method_needs_one(self) -> None:
        without = replace(TARGET, draft_model=None)
        with pytest.raises(
            SettingsError, match=r"^--speedbench-method=draft_model needs --speedbench-draft-model"
        ):
            arguments.refuse_models(without, method_of("draft_model"))
        arguments.refuse_models(without, method_of("ngram"))

    def test_a_draft_of_no_tokens_is_refused(self) -> None:
        empty = replace(TARGET, draft_length=0)
        with pytest.raises(SettingsError, match=r"^--speedbench-draft-length=0: "):
            arguments.refuse_draft_length(empty, METHODS["draft_model"])
        arguments.refuse_draft_length(empty, METHODS["none"])


class TestInterpreter:
    @pytest.fixture
    def program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """An engine's script on PATH, whose package this interpreter does not have."""
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        program = tmp_path / "acme_engine"
        program.write_text(f"#!{sys.executable}\n")
        program.chmod(0o755)
        return program

    def test_the_chosen_one_comes_first(self, program: Path) -> None:
        assert arguments.interpreter("/opt/acme/bin/python", "acme_engine") == "/opt/acme/bin/python"

    def test_that_of_the_script_on_path_where_this_one_lacks_the_package(self, program: Path) -> None:
        program.write_text("#!/bin/sh\n")
        assert arguments.interpreter(None, "acme_engine") == str(program.with_name("python"))
        program.write_text(f"#!{sys.executable}\n")
        assert arguments.interpreter(None, "acme_engine") == sys.executable

    def test_this_one_where_there_is_no_script(self) -> None:
        assert arguments.interpreter(None, "acme_engine") == sys.executable

    def test_it_answers_with_the_last_line_that_it_prints(self) -> None:
        code = 'print("a warning"); print(\'{"version": "1.0"}\')'
        assert arguments.ask(sys.executable, code) == {"version": "1.0"}

    @pytest.mark.parametrize("code", ["", "print('hello')", "raise SystemExit(1)"])
    def test_one_that_does_not_answer_is_refused(self, code: str) -> None:
        with pytest.raises(SettingsError, match=r"^--speedbench-engine-python="):
            arguments.ask(sys.executable, code)
