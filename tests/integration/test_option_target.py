"""`speedbench.yaml` names targets; the command line wins over it, and it wins over ini."""

from __future__ import annotations

import pytest

TARGETS = """
    targets:
      small:
        engine: reference
        method: draft_model
        draft_length: 2
      lookup:
        engine: reference
        method: ngram
        engine_args: [--seed, 7]
        tolerance:
          acceptance_length: 0.05
"""


def write(pytester: pytest.Pytester, text: str) -> None:
    pytester.makefile(".yaml", speedbench=text)


def test_a_target_is_taken_from_the_file(pytester: pytest.Pytester, gate: str) -> None:
    write(pytester, TARGETS)
    result = pytester.runpytest("--collect-only", "--speedbench-target=small")
    result.stdout.fnmatch_lines(["speedbench: reference, draft_model k=2; target small"])


def test_the_command_line_wins_and_ini_loses(pytester: pytest.Pytester, gate: str) -> None:
    write(pytester, TARGETS)
    pytester.makeini("[pytest]\nspeedbench_draft_length = 5\nspeedbench_target = small")
    result = pytester.runpytest("--collect-only")
    result.stdout.fnmatch_lines(["speedbench: reference, draft_model k=2; target small"])
    result = pytester.runpytest("--collect-only", "--speedbench-draft-length=4")
    result.stdout.fnmatch_lines(["speedbench: reference, draft_model k=4; target small"])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "targets: {small: {engine: reference}}",
            "*--speedbench-target=big: speedbench.yaml has no such target; it has small",
        ),
        ("targets: {big: {engin: reference}}", "*speedbench.yaml: targets.big: *'engin' was unexpected*"),
        (
            "targets: {big: {engine: reference, draft_length: 0}}",
            "*speedbench.yaml: targets.big.draft_length: 0 is less than*",
        ),
        (
            "targets: {big: {engine: reference, method: magic}}",
            "*speedbench.yaml, target big: method=magic: engine reference has *",
        ),
        ("targets: {big: {model: m}}", "*speedbench.yaml, target big: names no engine*"),
        (
            "targets:\n  big: {engine: reference}\n  big: {engine: vllm}",
            "*speedbench.yaml, line 3: 'big' is given twice*",
        ),
        ("targets: [", "*speedbench.yaml, line *"),
        ("", "*speedbench.yaml: the document: *"),
    ],
    ids=[
        "no such target",
        "unknown key",
        "bad number",
        "bad method",
        "no engine",
        "two of one name",
        "no yaml",
        "empty",
    ],
)
def test_a_wrong_file_is_refused_by_place(pytester: pytest.Pytester, gate: str, text: str, line: str) -> None:
    (pytester.path / "speedbench.yaml").write_text(text)
    result = pytester.runpytest("--speedbench-target=big")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"ERROR: {line.removeprefix('*')}" if not line.startswith("*speed") else line]
    )


def test_no_file_is_said_so(pytester: pytest.Pytester, gate: str) -> None:
    result = pytester.runpytest("--speedbench-target=big")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --speedbench-target=big: there is no speedbench.yaml in *"])
