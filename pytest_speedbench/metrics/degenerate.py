"""Output that makes a measurement worthless: text that repeats itself, and replies that end almost at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEAST_JUDGED_TOKENS = 64
"""Shorter outputs are never judged: a table of three rows is no loop."""
REPEATED_SHARE = 0.5
"""From this share of its tokens inside loops on, an output repeats itself."""
TRIVIAL_SHARE = 0.25
"""An output shorter than this share of the baseline's is a trivial response."""
LEAST_BASELINE_TOKENS = 32
"""A prompt whose baseline output is shorter than this has no room to end early in."""

_AGREEMENT = 0.8
_LEAST_STRETCH = 32
_LEAST_VOTES = 8
_PERIODS_TRIED = {3: 8, 24: 4}
"""How many periods are tried for n-grams of a length: short ones survive counting, long ones are hardly ever met twice
within one round of a long loop."""
_HASH_BASE = 0x9E3779B97F4A7C15


def repeats_itself(token_ids: Sequence[int]) -> bool:
    """Whether at least half of an output's tokens lie in loops. Outputs below 64 tokens are never judged.

    Such output is easy to draft, so that acceptance looks good for a bad reason. SPEED-Bench (arXiv 2604.09557)
    warns of two such ways and calls one of them topic latching; what is judged here is its visible end, a cycle.

    `bench/degenerate.py` measures how often it errs, `docs/degenerate-output.md` has the tables. Of healthy text (prose
    in 10 languages, messages of programs in 8, code; 64 to 4,096 tokens) 0.0 % to 0.3 % is taken for a loop at each
    length, of no kind more than 4 % at 64 tokens and 2 % above. Tables whose rows differ by a number or two are loops
    by this measure: a third of them. Cycles that come three times and fill half of the output were all found from
    128 tokens on; at 64, half of those that fill the second half. A loop without a fixed period is not found.

    Args:
        token_ids: the output tokens of one request.
    """
    return repeated_share(token_ids) >= REPEATED_SHARE


def repeated_share(token_ids: Sequence[int]) -> float:
    """The share of an output's tokens that lie in loops, from 0 to 1; 0 for outputs below 64 tokens.

    A token lies in a loop of period d if it belongs to a stretch of max(2 d, 32) tokens of which 80 % equal the
    token d before them, or to the first round, d tokens long, before such a stretch. So a loop has to come round
    three times; a passage that is quoted once is none. The other 20 % let a loop count ("item 1 ... item 2 ...").

    The periods that are tried are the 8 commonest distances between a 3-gram and its last occurrence, and the 4
    commonest of 24-grams. That n-grams come again is no sign by itself, and the less so the longer the output: at 4,096 tokens, 10 % of the healthy
    outputs have half of their tokens in 8-grams that came before. That they keep coming at one distance is.

    Args:
        token_ids: the output tokens of one request.
    """
    if len(token_ids) < LEAST_JUDGED_TOKENS:
        return 0.0
    import numpy as np

    _, tokens = np.unique(np.asarray(token_ids), return_inverse=True)
    inside = np.zeros(len(tokens) + 1, dtype=np.int64)
    for period in _likely_periods(tokens):
        stretch = max(2 * period, _LEAST_STRETCH)
        agreeing = np.concatenate(([0], np.cumsum(tokens[period:] == tokens[:-period])))
        starts = np.flatnonzero(agreeing[stretch:] - agreeing[:-stretch] >= _AGREEMENT * stretch)
        inside[starts] += 1
        inside[starts + stretch + period] -= 1
    return float(np.mean(np.cumsum(inside)[:-1] > 0))


def is_trivial(tokens: float, baseline_tokens: float) -> bool:
    """Whether a reply ended far below the length that the same prompt's reply had in the baseline.

    An engine that answers with one stock sentence, or with an early end of text, drafts that sentence well: its
    acceptance length is that of the sentence. Greedy outputs of one model differ in length between runs where
    batches round differently, but seldom by a factor; a quarter leaves room for a reply that is merely terse.

    Args:
        tokens: output tokens per request of this run's prompt.
        baseline_tokens: output tokens per request that the baseline's same prompt had; below 32 nothing is judged.
    """
    return baseline_tokens >= LEAST_BASELINE_TOKENS and tokens < TRIVIAL_SHARE * baseline_tokens


def _likely_periods(tokens: NDArray[np.intp]) -> set[int]:
    """Distances at which the output's n-grams come again most often; none above a third of the output."""
    import numpy as np

    periods: set[int] = set()
    for length, tried in _PERIODS_TRIED.items():
        hashes = np.zeros(len(tokens) - length + 1, dtype=np.uint64)
        for place in range(length):
            # Wraps around; two n-grams of one hash would cast a wrong vote, and each period is checked anyway.
            hashes = (hashes + tokens[place : place + len(hashes)].astype(np.uint64)) * np.uint64(_HASH_BASE)
        # A hash gives its low bits up for the place: sorting such numbers is far quicker than a stable argsort.
        bits = len(hashes).bit_length()
        placed = np.sort(
            hashes >> np.uint64(bits) << np.uint64(bits) | np.arange(len(hashes), dtype=np.uint64)
        )
        together = np.diff(placed >> np.uint64(bits)) == 0
        places = (placed & np.uint64((1 << bits) - 1)).astype(np.int64)
        distances = np.diff(places)[together]
        votes = np.bincount(distances[distances <= len(tokens) // 3])
        commonest = np.argsort(-votes, kind="stable")[:tried]
        periods.update(int(period) for period in commonest if votes[period] >= _LEAST_VOTES)
    return periods
