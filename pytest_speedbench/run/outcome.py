"""What a test does about the verdicts it asked for: fail, skip, or pass, perhaps with a notice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_speedbench.gate.check import Check, Verdict

if TYPE_CHECKING:
    from pytest_speedbench.gate.explain.cause import Cause
    from pytest_speedbench.run.ledger import CellRun, Explanation


@dataclass(frozen=True)
class Outcome:
    """Which of a test's checks fail it, which let it skip, and which a person should look at."""

    failing: tuple[Check, ...]
    skipping: tuple[Check, ...]
    notable: tuple[Check, ...]


def outcome_of(checks: Sequence[Check], *, inconclusive: str, incomparable: str, saving: bool) -> Outcome:
    """Sort checks by what a test has to do about them.

    Args:
        checks: of one test.
        inconclusive: `warn` or `fail`: what to do about an interval that is too wide to tell.
        incomparable: `skip` or `fail`: what to do about a check that only other hardware makes incomparable.
        saving: whether this run's measurements become the baseline: only what is invalid fails then.
    """
    failing: list[Check] = []
    skipping: list[Check] = []
    notable: list[Check] = []
    for check in checks:
        if check.verdict is Verdict.INVALID:
            failing.append(check)
        elif saving or check.verdict is Verdict.PASS:
            continue
        elif check.verdict is Verdict.IMPROVEMENT or (
            check.verdict is Verdict.INCONCLUSIVE and inconclusive == "warn"
        ):
            notable.append(check)
        elif check.verdict is Verdict.INCOMPARABLE and check.across_machines and incomparable == "skip":
            skipping.append(check)
        else:
            failing.append(check)
    return Outcome(tuple(failing), tuple(skipping), tuple(notable))


def explanations(known: CellRun, checks: Sequence[Check]) -> tuple[Explanation, ...]:
    """All that a failure explains at length, and that need not be read twice in a run.

    Args:
        known: the cell, with its cause where a check is a regression.
        checks: of the cell, those that fail its test.
    """
    found = [reason_of(known, check) for check in checks]
    if known.cause is not None:
        found.append(advice_of(known.cause))
    found += [difference(line) for check in checks for line in check.differs]
    return tuple(dict.fromkeys((*found, *filter(None, [how_to_store(checks)]))))


def reason_of(known: CellRun, check: Check) -> Explanation:
    """Why a check failed: the cause, which is that of a group, or what kept it from being judged."""
    cell = known.cell
    if check.verdict is Verdict.REGRESSION:
        word = "unknown" if known.cause is None else known.cause.word
        return check.verdict.value, word, cell.split, str(cell.batch_size)
    return check.verdict.value, *(reason.replace(cell.id, "") for reason in check.reasons)


def advice_of(cause: Cause) -> Explanation:
    """What to do next about a cause."""
    return "next", cause.advice


def difference(line: str) -> Explanation:
    """A condition that differs from the baseline's."""
    return "differs", line


def how_to_store(checks: Sequence[Check]) -> Explanation | None:
    """How the run becomes the baseline; None where it should not."""
    verdicts = {check.verdict for check in checks}
    if Verdict.INVALID in verdicts or verdicts == {Verdict.INCONCLUSIVE}:
        return None
    return "store", "as the baseline" if Verdict.NO_BASELINE in verdicts else "as the new baseline"
