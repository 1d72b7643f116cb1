"""What a test can do with the running engine, and with the prompts of a split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.conftest import Run

PROMPT = """
    import requests

    def test_own_request(speedbench_engine, speedbench_dataset):
        [prompt] = speedbench_dataset("qualitative", categories=["coding"]).prompts[:1]
        answer = requests.post(
            f"{speedbench_engine.url}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": prompt.turns[0]}], "max_tokens": 4},
        )
        assert answer.status_code == 200
        assert speedbench_engine.name == "reference" and speedbench_engine.target.method == "draft_model"
        assert speedbench_engine.version and speedbench_engine.hardware.count == 1
        assert speedbench_engine.log.is_file()
"""


def test_the_engine_is_the_one_that_is_measured(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(test_a_request=PROMPT)
    result = run("--speedbench-save", "--speedbench-category=qa", "-v")
    result.assert_outcomes(passed=2)
    assert len(list((pytester.path / ".speedbench" / "logs").iterdir())) == 1, "one start serves both"


def test_a_run_that_gates_nothing_can_use_the_engine(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(test_gate=PROMPT)
    run().assert_outcomes(passed=1)


def test_the_engine_starts_anew_where_another_target_was_measured(
    pytester: pytest.Pytester, run: Run
) -> None:
    pytester.makepyfile(
        test_gate="""
        import pytest, requests

        URLS = []

        def health(engine):
            URLS.append(engine.url)
            assert requests.get(engine.url + "/health").status_code == 200

        def test_before(speedbench_engine):
            health(speedbench_engine)

        @pytest.mark.speedbench(split="throughput_1k", categories=["mixed"], batch_sizes=[2], speedup=True)
        def test_gate(speedbench):
            assert speedbench.measure().metric("speedup") > 0

        def test_after(speedbench_engine):
            health(speedbench_engine)
            assert URLS[0] != URLS[1], "ended while the target without speculation was measured"
    """
    )
    run("--speedbench-limit=2").assert_outcomes(passed=3)


def test_without_an_engine_the_test_skips_and_the_sample_is_there(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        PROMPT
        + """
    def test_prompts(speedbench_dataset):
        dataset = speedbench_dataset("qualitative")
        assert dataset.source == "sample" and len(dataset.prompts) == 11 * 3
    """
    )
    result = pytester.runpytest("-rs", "--speedbench-limit=3")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*no engine to run: give --speedbench-engine=NAME*"])


def test_prompts_come_from_the_run_s_data(pytester: pytest.Pytester, tmp_path: Path) -> None:
    rows = [
        {"question_id": f"q{number}", "category": "qa", "turns": [f"Question {number}?"]}
        for number in range(3)
    ]
    (pytester.path / "qualitative.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pytester.makeini("[pytest]\nspeedbench_data = .\n")
    pytester.makepyfile("""
        def test_prompts(speedbench_dataset):
            assert {prompt.turns[0] for prompt in speedbench_dataset("qualitative", ["qa"]).prompts} == {
                "Question 0?", "Question 1?", "Question 2?"
            }

        def test_missing(speedbench_dataset):
            speedbench_dataset("qualitative", ["coding"])
    """)
    result = pytester.runpytest()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*qualitative.jsonl has no rows of category `coding`, only of `qa`; *"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_an_engine_that_does_not_start_is_an_error_of_the_fixture(
    pytester: pytest.Pytester, run: Run
) -> None:
    pytester.makepyfile(test_gate=PROMPT)
    result = run("--speedbench-url=http://127.0.0.1:9")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*is the server running?"])


def test_the_fixtures_explain_themselves(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--fixtures", "-p", "no:xdist")
    result.stdout.fnmatch_lines(
        [
            "speedbench -- *",
            "    The cell that this test is about: *",
            "speedbench_engine [[]session scope[]] -- *",
            "    The very engine that is measured, running: *",
            "speedbench_dataset [[]session scope[]] -- *",
            "    Loads the prompts of a split, as the run does: *",
        ]
    )
