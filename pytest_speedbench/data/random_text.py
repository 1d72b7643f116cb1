"""Tell prompts made of random tokens from text that somebody wrote."""

from __future__ import annotations

import random
import statistics
import zlib
from collections.abc import Sequence

RANDOM_DISORDER = 0.82
"""From this median of `disorder` on, prompts are taken for random tokens."""

_LEAST_CHARACTERS = 1000
_CHARACTERS = 4096
_PROMPTS = 8
_LEAST_PROMPTS = 3


def looks_random(texts: Sequence[str]) -> bool:
    """Whether the prompts of one category are random token ids, decoded to text.

    Looks at 8 prompts, spread over all, and takes the median of their `disorder`. Texts below 1,000 characters are
    left out; of fewer than 3 nothing is said, since a single real prompt may hold a key or a packed file.

    `bench/degenerate.py` measures how often it errs, `docs/degenerate-output.md` has the tables. None of 330
    categories of healthy text (prose in 10 languages, messages of programs in 8, code) was taken for random. Every
    category of random ids of a whole vocabulary of 130,072 tokens was found, of its ASCII tokens, of its first 4,000
    and of consecutive ones, too. Random tokens that all come from one script of long tokens are missed: of Hindi ones
    3 in 4 categories or more.

    Args:
        texts: prompts of one category of a throughput split.
    """
    judged = [text for text in texts if len(text) >= _LEAST_CHARACTERS]
    spread = sorted({number * len(judged) // _PROMPTS for number in range(_PROMPTS)}) if judged else []
    return len(spread) >= _LEAST_PROMPTS and (
        statistics.median(disorder(judged[at]) for at in spread) >= RANDOM_DISORDER
    )


def disorder(text: str) -> float:
    """How much of a text's order is gone: its compressed size over that of its own characters, shuffled.

    The 4,096 characters in the middle are compressed by zlib as UTF-16, once as they are and once shuffled (with a
    fixed seed). Dividing by the latter takes out how many characters a script has and how many bytes they take, which
    would otherwise set Chinese prose (64 % of its UTF-8) above random tokens of a small English vocabulary (58 %).

    Args:
        text: not empty.

    Returns:
        About 0.3 to 0.8 for text, 0.8 to 1 for random tokens: they keep the order of letters within a token
        and have none between tokens.
    """
    start = max(0, (len(text) - _CHARACTERS) // 2)
    characters = text[start : start + _CHARACTERS]
    shuffled = "".join(random.Random(0).sample(characters, len(characters)))
    return _compressed_bytes(characters) / _compressed_bytes(shuffled)


def _compressed_bytes(text: str) -> int:
    return len(zlib.compress(text.encode("utf-16-le", "surrogatepass"), 9))
