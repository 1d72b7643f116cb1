"""Which prompts of a run are those of its baseline, and which of them cannot be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_speedbench.metrics.degenerate import is_trivial
from pytest_speedbench.metrics.measurement import PromptTally

PAIRED_SHARE = 0.9
"""Share of the prompts that must be the baseline's, word for word."""


@dataclass(frozen=True)
class Pairing:
    """How many prompts of a run its baseline has too."""

    paired: int
    run: int
    baseline: int
    changed: int
    """Of the run's prompts: the same id, another text."""

    @property
    def complete(self) -> bool:
        """Whether both have the same prompts."""
        return self.paired == self.run == self.baseline


def matched(
    tallies: Sequence[PromptTally], stored: Sequence[PromptTally]
) -> tuple[list[tuple[PromptTally, PromptTally]], Pairing]:
    """Pair prompts by question id and text.

    Args:
        tallies: of the run.
        stored: of its baseline.

    Returns:
        (run, baseline) of each prompt that both have, and how many they are.
    """
    known: Mapping[str, PromptTally] = {tally.question_id: tally for tally in stored}
    same_id = [(tally, known[tally.question_id]) for tally in tallies if tally.question_id in known]
    same = [(now, then) for now, then in same_id if now.digest == then.digest]
    return same, Pairing(len(same), len(tallies), len(stored), len(same_id) - len(same))


def too_few(pairing: Pairing, *, both_ways: bool) -> str | None:
    """Why the prompts are not those of the baseline; None where enough of them are.

    Args:
        pairing: what was found.
        both_ways: whether prompts that the baseline has and the run has not count too, as they do for throughput,
            where they made up the batch.
    """
    if pairing.paired < PAIRED_SHARE * pairing.run or pairing.paired < 2:
        new = pairing.run - pairing.paired - pairing.changed
        why = [f"{pairing.changed} changed text"] if pairing.changed else []
        why += [f"{new} {'is' if new == 1 else 'are'} not in it"] if new else []
        tail = f": {', '.join(why)}" if why else ", and a comparison takes 2"
        return f"only {pairing.paired} of {pairing.run} prompts are those of the baseline{tail}"
    if both_ways and pairing.paired < PAIRED_SHARE * pairing.baseline:
        return (
            f"only {pairing.paired} of the baseline's {pairing.baseline} prompts were run, and the others were part of "
            "its batch"
        )
    return None


@dataclass(frozen=True)
class Degenerate:
    """Requests whose output makes acceptance look good for a bad reason."""

    latched: int
    """Their output repeats itself."""
    trivial: int
    """They ended far below the length that the baseline's same prompt had."""
    requests: int
    """Of the run."""

    @property
    def share(self) -> float:
        """Of all requests; one that is latched in a trivial prompt counts once."""
        return (self.latched + self.trivial) / self.requests if self.requests else 0.0

    def told(self) -> str:
        """In words for a person."""
        parts = [f"{self.latched} repeat themselves"] if self.latched else []
        parts += [f"{self.trivial} end far below the baseline's length"] if self.trivial else []
        return f"of {self.requests} requests {' and '.join(parts)} ({self.share:.1%})"


def degenerate(
    tallies: Sequence[PromptTally],
    both: Sequence[tuple[PromptTally, PromptTally]] = (),
) -> Degenerate:
    """Count the requests whose output cannot be trusted.

    Args:
        tallies: all prompts of the run.
        both: those that the baseline has too, as `matched` gives them; what is trivial shows against these only.
    """
    trivial = {
        now.question_id
        for now, then in both
        if is_trivial(now.output_tokens / now.requests, then.output_tokens / then.requests)
    }
    return Degenerate(
        latched=sum(
            [tally.latched for tally in tallies if tally.latched and tally.question_id not in trivial]
        ),
        trivial=sum([tally.requests for tally in tallies if tally.question_id in trivial]) if trivial else 0,
        requests=sum([tally.requests for tally in tallies]),
    )
