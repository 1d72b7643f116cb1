"""Whatever goes wrong gives one clear line, the right exit code, and no traceback of ours."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest

from pytest_speedbench.run.session import EX_TEMPFAIL
from tests.integration.conftest import Run

BASELINE = Path("baselines", "reference-draft_model-k3.yaml")
FAULT = "--speedbench-engine-arg=--fault={}"
AFTER = "--speedbench-engine-arg=--fault-after={}"


def refused(result: pytest.RunResult, line: str) -> None:
    """The run stopped before anything was launched, with one line."""
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {line}"])
    clean(result)
    assert "speedbench ===" not in result.stdout.str()


def clean(result: pytest.RunResult) -> None:
    for text in (result.stdout.str(), result.stderr.str()):
        assert "Traceback" not in text
        assert "INTERNALERROR" not in text


# Before anything is launched


def test_unknown_engine(pytester: pytest.Pytester, gate: str) -> None:
    refused(
        pytester.runpytest("--speedbench-engine=vlm"),
        "--speedbench-engine=vlm: no such engine; *vllm*",
    )


def test_no_model(pytester: pytest.Pytester, gate: str) -> None:
    refused(
        pytester.runpytest("--speedbench-engine=vllm", f"--speedbench-engine-python={sys.executable}"),
        "--speedbench-*model*",
    )


def test_model_path_missing(pytester: pytest.Pytester, gate: str) -> None:
    refused(
        pytester.runpytest("--speedbench-engine=vllm", "--speedbench-model=./nowhere"),
        "--speedbench-model=*nowhere*",
    )


def test_engine_not_installed(pytester: pytest.Pytester, gate: str) -> None:
    (pytester.path / "config.json").write_text("{}")
    refused(
        pytester.runpytest(
            "--speedbench-engine=vllm",
            f"--speedbench-model={pytester.path}",
            f"--speedbench-engine-python={sys.executable}",
        ),
        "--speedbench-engine=vllm: vLLM is not installed in *--speedbench-engine-python*",
    )


def test_launch_argument_that_is_ours(run: Run) -> None:
    refused(run("--speedbench-engine-arg=--port=80"), "--speedbench-engine-arg=--port: the plugin chooses*")


def test_two_targets_of_one_name(pytester: pytest.Pytester, gate: str) -> None:
    (pytester.path / "speedbench.yaml").write_text(
        "targets:\n  a: {engine: reference}\n  a: {engine: vllm}\n"
    )
    refused(pytester.runpytest("--speedbench-target=a"), "*speedbench.yaml, line 3: 'a' is given twice*")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "baseline *k3.yaml, line *"),
        (
            "schema_version: 1\ntarget: a\n",
            "baseline *k3.yaml: not a baseline of schema_version 1: no 'acceptance'*",
        ),
        (
            "schema_version: 99\n",
            "baseline *k3.yaml: schema_version 99 was written by a newer pytest-speedbench*upgrade*",
        ),
    ],
    ids=["corrupt", "not fitting the schema", "newer schema"],
)
def test_baseline_that_cannot_be_used(pytester: pytest.Pytester, run: Run, text: str, line: str) -> None:
    path = pytester.path / BASELINE
    path.parent.mkdir()
    path.write_text(text)
    refused(run("--speedbench-save"), line)
    assert path.read_text() == text


def test_baseline_unreadable(pytester: pytest.Pytester, run: Run) -> None:
    (pytester.path / BASELINE).mkdir(parents=True)
    refused(run(), "baseline *k3.yaml: cannot be read: Is a directory*")


def row(**changes: object) -> str:
    good = {"question_id": "a", "category": "coding", "turns": ["Write a sort."]}
    return json.dumps({**good, **changes}) + "\n"


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (None, "data folder *data is empty; run *"),
        ("", "*qualitative.jsonl*"),
        (
            row(
                turns=["FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH\n\nAnswer."]
            ),
            "*qualitative.jsonl, line 1: *placeholder*prepare*",
        ),
        (row() + row(question_id="b", category="codng"), "*qualitative.jsonl, line 2: *codng*coding*"),
        (
            row() + row(),
            "*qualitative.jsonl, line 2: question_id `a` is that of *qualitative.jsonl, line 1 too;*",
        ),
        (row(turns=[""]), "*qualitative.jsonl, line 1: *empty*"),
        ("{\n", "*qualitative.jsonl, line 1: *JSON*"),
    ],
    ids=["folder empty", "file empty", "placeholder", "bad category", "duplicate", "empty turn", "no JSON"],
)
def test_data_that_cannot_be_used(pytester: pytest.Pytester, run: Run, rows: str | None, line: str) -> None:
    data = pytester.mkdir("data")
    if rows is not None:
        (data / "qualitative.jsonl").write_text(rows)
    refused(run(f"--speedbench-data={data}"), line)


# The engine


def test_engine_dies_at_start(run: Run) -> None:
    result = run("--speedbench-engine-arg=--no-such-option")
    result.assert_outcomes(errors=3)
    assert result.ret == EX_TEMPFAIL
    result.stdout.fnmatch_lines(
        [
            "*reference*exited with code 2*",
            "*--no-such-option*",
            "*unrecognized arguments: --no-such-option*",
            "qualitative-qa-bs2 was not measured, for the reason that qualitative-coding-bs2 gives: reference *",
            "qualitative-mean-bs2 was not measured, for the reason that qualitative-coding-bs2 gives: *",
        ]
    )
    clean(result)


def test_port_taken(pytester: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost to another process between choosing it and binding it: another port is tried."""
    from pytest_speedbench.engines.launch import ports

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = [other.getsockname()[1]]
        free = ports.free
        monkeypatch.setattr(ports, "free", lambda: taken.pop() if taken else free())
        result = run("--speedbench-save")
    result.assert_outcomes(passed=3)
    assert not taken


def test_engine_dies_mid_run(run: Run) -> None:
    result = run(FAULT.format("crash"), AFTER.format(4))
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines(
        [
            "*INVALID: * requests failed*",
            "*exited with code 70)",
            "qualitative-qa-bs2 was not measured: reference exited with code 70 in an earlier cell; its log: *",
        ]
    )
    clean(result)


@pytest.mark.parametrize(
    ("fault", "lines"),
    [
        ("http-500", ["*INVALID: * of * requests failed*", "*HTTP 500: *"]),
        ("drop", ["*INVALID: * of * requests failed*"]),
        ("no-counters", ["*INVALID: *counters*"]),
    ],
)
def test_a_faulty_engine_makes_the_cell_invalid(run: Run, fault: str, lines: list[str]) -> None:
    result = run(FAULT.format(fault), AFTER.format(4), "--speedbench-category=qa")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(lines)
    clean(result)


def test_a_stalled_request_has_failed(run: Run) -> None:
    result = run(
        FAULT.format("stall"), AFTER.format(4), "--speedbench-category=qa", "--speedbench-request-timeout=1"
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*INVALID: * of * requests failed*"])
    clean(result)


# Saving


def test_nothing_is_saved_after_a_failure(pytester: pytest.Pytester, saved: Run) -> None:
    before = (pytester.path / BASELINE).read_bytes()
    result = saved("--speedbench-save", FAULT.format("no-counters"), AFTER.format(14))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["nothing was saved to baselines/reference-draft_model-k3.yaml: * failed"])
    assert (pytester.path / BASELINE).read_bytes() == before
    clean(result)


def test_a_dead_drafter_is_no_baseline(pytester: pytest.Pytester, run: Run) -> None:
    result = run("--speedbench-save", "--speedbench-engine-arg=--draft-quality=0.001")
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(["*not stored, an acceptance length of 1.0* is that of a dead drafter*"])
    assert not (pytester.path / BASELINE).exists()
    clean(result)


def test_a_folder_that_cannot_be_written_fails_the_run(pytester: pytest.Pytester, run: Run) -> None:
    (pytester.path / "baselines").write_text("a file where a folder should be")
    result = run("--speedbench-save")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["nothing was saved: *"])
    clean(result)


def test_ctrl_c_saves_nothing_and_ends_the_engine(pytester: pytest.Pytester, gate: str) -> None:
    import psutil

    pytester.makeconftest("""
        import psutil

        def pytest_speedbench_checked(check):
            print("engine:", *(child.pid for child in psutil.Process().children(recursive=True)))
            raise KeyboardInterrupt
    """)
    result = pytester.runpytest_subprocess(
        "-s", "--speedbench-engine=reference", "--speedbench-output-length=8", "--speedbench-save"
    )
    assert result.ret == pytest.ExitCode.INTERRUPTED
    (line,) = (line for line in result.outlines if "engine: " in line)
    pids = [int(pid) for pid in line.partition("engine: ")[2].split()]
    assert pids
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    assert not (pytester.path / BASELINE).exists()
    result.stdout.fnmatch_lines(["nothing was saved to *: the run did not end by itself"])
