"""Many failures of one cause are read in seconds: one headline, one block, one explanation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_speedbench.cells import MEAN, Cell
from pytest_speedbench.gate.check import Check, Verdict
from pytest_speedbench.gate.explain.cause import Cause
from pytest_speedbench.report.by_cause import block_lines, failed_blocks, headline
from pytest_speedbench.report.failure import failure_text
from pytest_speedbench.report.markdown import text
from pytest_speedbench.report.terminal import summary
from pytest_speedbench.run.ledger import CellRun
from pytest_speedbench.run.outcome import explanations
from pytest_speedbench.speed_bench import DOMAINS
from tests.report.samples import (
    CODING,
    DRAFTER,
    MEAN_CELL,
    PATTERN,
    SAVE,
    SLOWER,
    TARGET,
    WIDEST,
    check,
    measurement,
    run,
)
from tests.run.cell_runs import cell_run

NO_BASELINE = Check(
    "acceptance_length",
    Verdict.NO_BASELINE,
    0.03,
    0.001,
    value=2.1,
    reasons=("no baseline is stored for this target",),
)


def failed(cell: Cell, *checks: Check, cause: Cause | None = None, shown: str = "...") -> CellRun:
    """A cell with checks that all fail its test."""
    known = cell_run(measurement(cell), checks, cause, failure=shown)
    failing = tuple(each.metric for each in checks)
    return with_measurement(replace(known, failing=failing), known)


def with_measurement(changed: CellRun, known: CellRun) -> CellRun:
    changed.__dict__["measurement"] = known.measurement
    return changed


def weaker(batch_size: int, index: int, category: str) -> CellRun:
    """The n-th category lost n percent more than the first."""
    one = check(ratio=0.95 - 0.01 * index)
    return failed(Cell("qualitative", category, batch_size), one, cause=DRAFTER)


def weaker_drafter(*batch_sizes: int) -> list[CellRun]:
    """All categories lost acceptance length, and the mean with them."""
    return [
        known
        for size in batch_sizes
        for known in (
            *(weaker(size, index, category) for index, category in enumerate(DOMAINS)),
            failed(Cell("qualitative", MEAN, size), check(ratio=0.9), cause=DRAFTER),
        )
    ]


def shown(known: CellRun, *before: CellRun) -> list[str]:
    """The text of a failed test, after others have failed."""
    checks = [known.settled[metric] for metric in known.failing]
    explained = {
        each: other.cell
        for other in before
        for each in explanations(other, [other.settled[metric] for metric in other.failing])
    }
    return failure_text(
        known, checks, TARGET, baseline="b.yaml", log="e.log", save_command=SAVE, explained=explained
    ).splitlines()


# The text of a failed test


def test_a_cause_is_explained_by_the_first_test_that_it_fails() -> None:
    first, second = weaker(1, 0, "coding"), weaker(1, 1, "qa")
    assert len(shown(first)) > 10
    assert shown(second, first) == [
        "qualitative / qa / batch size 1: acceptance_length -6.0 %, drafter",
        "  acceptance_length 3.00 -> 2.81   -6.0 %  [95 % CI -6.7 .. -5.3]",
        "  cause: drafter, as in qualitative-coding-bs1",
    ]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (weaker(8, 1, "qa"), "  cause: drafter. A step yields"),
        (
            failed(Cell("qualitative", "qa", 1), check(), cause=replace(DRAFTER, word="both")),
            "  cause: both. A step yields",
        ),
        (
            failed(Cell("qualitative", "qa", 1), NO_BASELINE),
            "                    NO-BASELINE: no baseline is stored for this target",
        ),
    ],
    ids=["another batch size", "another cause", "another verdict"],
)
def test_what_is_not_explained_yet_is(other: CellRun, reason: str) -> None:
    lines = shown(other, weaker(1, 0, "coding"))
    assert any(line.startswith(reason) for line in lines)
    assert not any(" as in " in line for line in lines)


def test_what_holds_for_the_whole_run_is_said_once() -> None:
    differs = check(differs=("engine_version 0.31.0 -> 0.32.0",))
    first, second = (failed(Cell("qualitative", "qa", size), differs, cause=DRAFTER) for size in (1, 8))
    once = [
        "vllm, llama-3.3-70b, eagle3 k=3",
        "  next: check the draft model.",
        "  differs from the baseline: engine_version 0.31.0 -> 0.32.0",
        "  engine log: e.log",
        "  if this is intended, store it as the new baseline:",
        f"    {SAVE}",
    ]
    assert [line for line in shown(first) if line in once] == once
    assert not set(once) & set(shown(second, first))


def test_all_figures_of_a_cell_are_shown_and_its_cause_once() -> None:
    unsure = replace(SLOWER, metric="user_tps", verdict=Verdict.INCONCLUSIVE)
    first, second = (
        failed(Cell("qualitative", name, 1), check(), SLOWER, unsure, cause=DRAFTER)
        for name in ("coding", "qa")
    )
    assert shown(second, first) == [
        "qualitative / qa / batch size 1: output_tps -6.7 %, drafter",
        "  acceptance_length 3.00 -> 2.81   -6.3 %  [95 % CI -7.0 .. -5.6]",
        "  output_tps        2518 -> 2349   -6.7 %  [95 % CI -8.9 .. -4.4]",
        "  user_tps          2518 -> 2349   -6.7 %  [95 % CI -8.9 .. -4.4]",
        "                    INCONCLUSIVE (tolerance -5 %, sensitivity 6.1 %), as in",
        "                      qualitative-coding-bs1",
        "  cause: drafter, as in qualitative-coding-bs1",
    ]


def test_a_mean_says_what_its_categories_have_in_common_even_where_the_cause_is_known() -> None:
    known = failed(MEAN_CELL, check(), cause=DRAFTER)
    known = with_measurement(replace(known, pattern=PATTERN), known)
    assert shown(known, failed(CODING, check(), cause=DRAFTER))[-2].startswith(
        "  pattern: 2 of 11 categories"
    )


def test_a_reason_is_said_once() -> None:
    first, second = (failed(Cell("qualitative", name, 1), NO_BASELINE) for name in ("coding", "qa"))
    assert shown(second, first) == [
        "qualitative / qa / batch size 1: acceptance_length no-baseline",
        "  acceptance_length 2.10",
        "                    NO-BASELINE, as in qualitative-coding-bs1",
    ]


def test_a_reason_that_two_checks_of_a_cell_share_is_said_once() -> None:
    reasons = ("the load client was the bottleneck (92 % CPU)",)
    slow = [
        Check(metric, Verdict.INVALID, 0.05, 0.001, value=1.0, reasons=reasons)
        for metric in ("output_tps", "user_tps")
    ]
    assert shown(failed(CODING, *slow))[2:6] == [
        "  output_tps        1.00",
        "                    INVALID: the load client was the bottleneck (92 % CPU)",
        "  user_tps          1.00",
        "                    INVALID: as above",
    ]


# The end of the run


@pytest.mark.parametrize(
    ("cells", "line"),
    [
        (
            weaker_drafter(1),
            "REGRESSION: acceptance_length fell in 11 of 11 categories at batch size 1 (drafter), "
            "worst: writing -15.0 %",
        ),
        (
            weaker_drafter(1, 4),
            "REGRESSION: acceptance_length fell in 22 of 22 cells at batch sizes 1 and 4 (drafter), "
            "worst: qualitative-writing-bs1 -15.0 %",
        ),
        (
            [*weaker_drafter(1)[:3], cell_run(measurement(CODING), (check(Verdict.PASS),))],
            "REGRESSION: acceptance_length fell in 3 of 3 categories at batch size 1 (drafter), worst: math -7.0 %",
        ),
        (
            [failed(MEAN_CELL, check(ratio=0.98), cause=DRAFTER)],
            "REGRESSION: acceptance_length fell in the mean over categories at batch size 32 (drafter), "
            "worst: mean -2.0 %",
        ),
        (
            [failed(CODING, check(), SLOWER, cause=DRAFTER), failed(WIDEST, NO_BASELINE)],
            "REGRESSION: acceptance_length fell in qualitative-coding-bs32 (drafter): -6.3 %; "
            "output_tps fell in qualitative-coding-bs32 (drafter): -6.7 %; NO-BASELINE: 1 check",
        ),
        (
            [failed(CODING, NO_BASELINE), failed(WIDEST, NO_BASELINE)],
            "NO-BASELINE: 2 checks, no baseline is stored for this target",
        ),
        ([cell_run(measurement(CODING), (check(Verdict.PASS),))], None),
    ],
)
def test_the_headline_is_the_verdict_the_cause_and_the_worst_cell(
    cells: list[CellRun], line: str | None
) -> None:
    assert headline(run(*cells)) == line


def test_failures_without_a_check_are_counted_too() -> None:
    refused = cell_run(measurement(CODING), failure="not stored", refused="not stored, a dead drafter")
    own = cell_run(measurement(WIDEST), failure="assert 1 > 2\nmore")
    result = run(refused, own, failures={"test_own.py::test": "the engine has no model"})
    assert (
        headline(result)
        == "REFUSED AS A BASELINE: 1 cell, not stored, a dead drafter; OTHER FAILURES: 2 tests"
    )
    assert [block.paragraphs for block in failed_blocks(result)] == [
        ("not stored, a dead drafter",),
        ("assert 1 > 2", "the engine has no model"),
    ]


def test_a_block_has_its_cells_worst_first_and_says_the_rest_once() -> None:
    (block,) = failed_blocks(run(*weaker_drafter(1)))
    lines = block_lines(block, all_rows=False)
    assert lines[:3] == [
        "cause: drafter, qualitative",
        "  writing-bs1        AL  3.00 -> 2.81  -15.0 %  [-15.6 .. -14.4]",
        "  summarization-bs1  AL  3.00 -> 2.81  -14.0 %  [-14.6 .. -13.3]",
    ]
    assert lines[6:] == [
        "  and 7 more, listed with -v",
        "  A step yields 6.3 % fewer tokens: 94 % of the loss.",
        "  next: check the draft model.",
    ]
    assert len(block_lines(block, all_rows=True)) == 1 + 12 + 2


def test_one_failure_is_not_explained_twice() -> None:
    lines = [line for line, _ in summary(run(failed(CODING, check(), cause=DRAFTER)))]
    assert not any(line.startswith("cause: ") for line in lines)
    assert lines[0].startswith("REGRESSION: ")


@pytest.mark.parametrize("verbosity", [0, 1])
def test_every_line_fits(verbosity: int) -> None:
    wide = [
        failed(
            replace(WIDEST, category=tier), replace(SLOWER, value=98_765.4, baseline=99_999.9), cause=DRAFTER
        )
        for tier in ("low_entropy", "mixed", "high_entropy")
    ]
    lines = [line for line, _ in summary(run(*weaker_drafter(1, 512), *wide), verbosity)]
    assert max(map(len, lines)) <= 80


def test_what_22_failing_cells_print_is_read_in_a_minute() -> None:
    """Their texts, with pytest's title of each, and the end of the run."""
    cells = weaker_drafter(1, 4)
    texts = [line for index, known in enumerate(cells) for line in ("title", *shown(known, *cells[:index]))]
    assert len(texts) + len(summary(run(*cells))) + len(cells) < 200


def test_a_page_of_33_failing_cells_fits_a_comment() -> None:
    cells = [
        with_measurement(replace(known, failures={"test_gate.py::test": f"{known.cell.id}\n" * 100}), known)
        for known in weaker_drafter(1, 4, 32)
    ]
    page = text(run(*cells))
    assert len(page.encode()) < 60_000
    assert page.index("qualitative-writing-bs1 |") < page.index("qualitative-coding-bs1 |")
    assert " more, in the output of the run" in page


def test_notices_of_many_cells_are_one_block() -> None:
    unsure = check(Verdict.INCONCLUSIVE, ratio=0.98, error=0.05)
    cells = [cell_run(measurement(cell), (unsure,)) for cell in (CODING, WIDEST)]
    cells = [with_measurement(replace(known, notable=("acceptance_length",)), known) for known in cells]
    lines = [line for line, _ in summary(run(*cells))]
    assert lines.count("inconclusive") == 1, "of two splits"
    assert sum(line.startswith("  to be surer, measure more prompts") for line in lines) == 1
    beside_a_failure = [line for line, _ in summary(run(*cells, failed(CODING, check(), cause=DRAFTER)))]
    assert "inconclusive" in beside_a_failure
    assert not any("to be surer" in line for line in beside_a_failure)
    folded = [line for line, _ in summary(run(*cells), verbosity=1)]
    assert sum("INCONCLUSIVE" in line for line in folded) == 2


# Estimates


def test_an_estimate_is_marked_wherever_it_is_shown() -> None:
    known = failed(CODING, check(), SLOWER, cause=DRAFTER)
    assert known.measurement is not None
    guessed = replace(
        known.measurement, estimated=True, metrics={"acceptance_length": 2.81, "output_tps": 2349.0}
    )
    known.__dict__["measurement"] = guessed
    known.__dict__.pop("metrics", None)
    lines = shown(known)
    assert "  acceptance_length ~3.00 -> ~2.81   -6.3 %  [95 % CI -7.0 .. -5.6]" in lines
    assert "                    REGRESSION (tolerance -3 %, estimated)" in lines
    assert "                    REGRESSION (tolerance -5 %)" in lines, "a clock is not an estimate"
    for report in ("\n".join(line for line, _ in summary(run(known))), text(run(known))):
        assert "~2.81" in report
        assert "~ is estimated" in report
