"""What a test does about the verdicts it asked for: fail, skip, or pass, perhaps with a notice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_speedbench.gate.check import Check, Verdict


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
