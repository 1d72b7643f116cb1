"""Random numbers that depend on nothing but integers: the same on every machine, Python and hash seed.

A draw is a hash of what it is for, not the next number of a stream. Two runs that differ in one thing (a
weaker drafter, another draft length) therefore meet the same numbers wherever they do the same thing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

_MASK = (1 << 64) - 1


def mix(value: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): any integer to 64 well-mixed bits."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def unit(value: int) -> float:
    """64 mixed bits as a number in [0, 1) with 53 bits."""
    return (value >> 11) * 2.0**-53


def digest(tokens: Sequence[int], *more: int) -> int:
    """A 64-bit name of a token sequence and some integers."""
    text = ",".join(map(str, (*more, *tokens)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class Randomness:
    """The draws of one generation, each named by the output position and the purpose it serves.

    Args:
        key: 64 bits; `digest` of prompt and seed.
    """

    def __init__(self, key: int) -> None:
        self._key = key

    def propose(self, position: int) -> float:
        """Chooses the draft token for an output position."""
        return unit(mix(self._key ^ mix(position * 4)))

    def accept(self, position: int) -> float:
        """Decides on the draft token at an output position."""
        return unit(mix(self._key ^ mix(position * 4 + 1)))

    def sample(self, position: int) -> float:
        """Chooses the target model's own token at an output position."""
        return unit(mix(self._key ^ mix(position * 4 + 2)))
