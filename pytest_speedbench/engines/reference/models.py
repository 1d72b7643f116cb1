"""Two tiny language models over one context: what comes next, and what the drafter takes for it.

Nothing here is learned. Which tokens may come next, and how far the drafter is from the target, are explicit
functions of the tokens so far: of their hash, of how much the prompt repeats itself, and of how predictable its
pieces are. Code is predictable, dialogue less so, scripts that the vocabulary hardly knows least. No table of
categories is consulted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from pytest_speedbench.engines.reference.randomness import digest, mix, unit
from pytest_speedbench.engines.reference.vocabulary import END, FIRST_BYTE, FIRST_PIECE, Vocabulary

LOOP_PERIOD = 4
_UNSEEN = "unseen"
"""Special tokens, control characters and parts of a UTF-8 character are read, but never generated."""
_MASK = (1 << 64) - 1
_BITS_16 = 0xFFFF
_DIALOGUE_WORDS = frozenset(
    ("I", "me", "my", "mine", "you", "your", "we", "us", "our", "am", "oh", "dear", "sir", "lady", "lord")
)
_DIALOGUE_MARKS = frozenset('!"“”…')
_OPERATORS = frozenset("()[]{}<>=+-*/%&|^~_#`\\@$;")


@dataclass(frozen=True)
class Profile:
    """What a prompt says about the tokens that follow it."""

    ease: float
    """Mean predictability of the prompt's tokens, about -1 to 1."""
    repetition: float
    """Share of the prompt's token pairs that stood in it before."""
    tokens: int
    may_end: bool
    """Whether `<|end|>` may be generated."""


class Context(NamedTuple):
    """A prompt and the output so far. Extending it leaves it as it was, so that a draft is easily dropped."""

    text: str
    """Token ids as code points: strings are searched at C speed, and a copy costs two bytes a token."""
    name: int
    """64-bit hash of all tokens."""
    recent: float
    """Moving average of the predictability of the last tokens."""
    profile: Profile

    @property
    def generated(self) -> int:
        """Output tokens so far."""
        return len(self.text) - self.profile.tokens


class Outlook(NamedTuple):
    """What both models say of the next token."""

    candidates: tuple[int, ...]
    """Distinct tokens, the target's most likely first."""
    disagreement: float
    """d in [0, 1] of `Shape`: how far the drafter is from the target."""


@dataclass(frozen=True)
class Tuning:
    """Constants of the models.

    They were set so that the acceptance lengths of SPEED-Bench's categories spread about as in its published
    results (arXiv 2604.09557, table 1).
    """

    acceptance: float = 0.57
    """Acceptance rate at temperature 0 of a prompt whose predictability is 0."""
    ease: float = 0.55
    recent: float = 0.1
    copied: float = 0.12
    repetition: float = 0.2
    spread: float = 0.3
    """Half the width of the variation from context to context."""
    copy: float = 0.2
    """Probability that the target takes up an earlier passage, in a prompt without repetition."""
    copy_by_repetition: float = 0.5
    copy_on: float = 0.82
    """Probability that it goes on with one where the last two tokens stood before."""
    from_prompt: float = 0.5
    """Probability that another candidate is a token of the prompt, not just one like it."""
    end: float = 1.0 / 400.0
    """Probability that the most likely next token is `<|end|>`, where it is allowed."""


class ModelPair:
    """Target and draft model.

    Args:
        vocabulary: whose tokens they speak.
        draft_quality: Q in (0, 1]. The drafter's disagreement becomes `1 - Q (1 - d)`, which at temperature 0
            multiplies the acceptance rate of every context by Q, and above it nearly so.
        tuning: constants.
        loop: a fault; the target repeats its last `LOOP_PERIOD` tokens for ever, and the drafter knows it.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        draft_quality: float = 1.0,
        tuning: Tuning | None = None,
        loop: bool = False,
    ) -> None:
        self.vocabulary = vocabulary
        self.draft_quality = draft_quality
        self.tuning: Tuning = tuning or Tuning()
        self.loop = loop
        self._ease, self._group, self._words = _sorted(vocabulary)

    def start(self, prompt: Sequence[int], *, may_end: bool = False) -> Context:
        """The context of a prompt (at least one token)."""
        ease = [self._ease[token] for token in prompt]
        pairs = len(prompt) - 1
        repetition = 1.0 - len(set(pairwise(prompt))) / pairs if pairs else 0.0
        profile = Profile(math.fsum(ease) / len(ease), repetition, len(prompt), may_end)
        return Context("".join(map(chr, prompt)), digest(prompt), profile.ease, profile)

    def extend(self, context: Context, token: int) -> Context:
        """The context with one more token."""
        return Context(
            context.text + chr(token),
            (context.name * 0x9E3779B97F4A7C15 + token + 1) & _MASK,
            0.85 * context.recent + 0.15 * self._ease[token],
            context.profile,
        )

    def outlook(self, context: Context, candidates: int) -> Outlook:
        """Candidates for the next token, and how far the drafter is off.

        Args:
            context: what stands before it.
            candidates: how many; the first is the same for any number, and so is the last.
        """
        tuning, profile = self.tuning, context.profile
        bits = mix(context.name)
        if self.loop and context.generated >= LOOP_PERIOD:
            return Outlook(self._fill(ord(context.text[-LOOP_PERIOD]), context, bits, candidates), 0.0)
        first = None
        copied = False
        if profile.may_end and unit(mix(bits ^ 1)) < tuning.end:
            first = END
        else:
            first = self._follower(context.text, unit(mix(bits ^ 2)), profile.repetition)
            copied = first is not None
        acceptance = (
            tuning.acceptance
            + tuning.ease * profile.ease
            + tuning.recent * context.recent
            + tuning.repetition * profile.repetition
            + (tuning.copied if copied else 0.0)
            + tuning.spread * (2.0 * unit(bits) - 1.0)
        )
        acceptance = self.draft_quality * min(0.98, max(0.02, acceptance))
        return Outlook(self._fill(first, context, bits, candidates), 1.0 - acceptance)

    def _follower(self, text: str, uniform: float, repetition: float) -> int | None:
        """The token after the most recent earlier occurrence of the last two tokens, else of the last one.

        None where there is none, or where the target does not feel like copying: it takes up an earlier
        passage at one token, and once two agree it is likely to go on.
        """
        tuning = self.tuning
        end = len(text) - 1
        if uniform >= tuning.copy_on:
            return None
        at = text.rfind(text[-2:], 0, end) + 2 if end else 1
        if at == 1 and uniform < tuning.copy + tuning.copy_by_repetition * repetition:
            at = text.rfind(text[-1], 0, end) + 1
        if at < 2:
            return None
        token = ord(text[at])
        return token if self._group[token] else None

    def _fill(self, first: int | None, context: Context, bits: int, candidates: int) -> tuple[int, ...]:
        chosen = [] if first is None else [first]
        if first is None:
            chosen.append(self._draw(mix(bits ^ 3), context))
        number = bits
        while len(chosen) < candidates:
            number = mix(number)
            token = self._draw(number, context)
            if token not in chosen:
                # The second to be drawn is the last of the list, whatever its length: see `Shape.at`.
                chosen.insert(max(1, len(chosen) - 1), token)
        return tuple(chosen)

    def _draw(self, number: int, context: Context) -> int:
        """A token of the prompt, or one of its kind; common words are likelier than rare ones."""
        profile = context.profile
        token = ord(context.text[(number >> 40) % profile.tokens])
        group = self._group[token]
        if not group or not number & 7:
            group = self._words
        elif (number >> 3 & 31) < 32.0 * self.tuning.from_prompt:
            return token
        rank = (number >> 8 & _BITS_16) / 65536.0
        return group[int(rank * rank * len(group))]


class _Tokens(NamedTuple):
    """What is known of each token, by id."""

    ease: tuple[float, ...]
    group: tuple[tuple[int, ...], ...]
    """The tokens that could stand in its place, common ones first; empty where it is never generated."""
    words: tuple[int, ...]
    """The tokens that are English words."""


@cache
def _sorted(vocabulary: Vocabulary) -> _Tokens:
    known = set(vocabulary.pieces)
    kinds: list[str] = []
    ease: list[float] = []
    members: dict[str, list[int]] = {}
    for token in range(len(vocabulary)):
        text = vocabulary.decode([token])
        kind = _kind(text)
        if token < FIRST_PIECE and not (token >= FIRST_BYTE and text.isascii() and text.isprintable()):
            kind = _UNSEEN
        elif kind == "fragment" and " " + text in known:
            kind = "head"
        kinds.append(kind)
        ease.append(_ease(kind, text))
        members.setdefault(kind, []).append(token)
    groups = {kind: tuple(tokens) for kind, tokens in members.items()} | {_UNSEEN: ()}
    return _Tokens(tuple(ease), tuple(groups[kind] for kind in kinds), groups["word"])


def _kind(text: str) -> str:
    """What sort of piece this is; tokens of one sort can replace one another."""
    bare = text.strip(" ")
    if not bare or bare.isspace() or "\n" in bare:
        return "space"
    lead = ord(bare[0])
    if lead >= 0x250 or (lead >= 0x80 and not bare.isalpha()):
        return "cjk" if 0x4E00 <= lead < 0xA000 else f"block {lead >> 8}"
    if bare.isalpha():
        if not bare.isascii():
            return "latin"
        if len(bare) == 1 and bare not in "aAI":
            return "fragment"
        if not bare.islower():
            return "name"
        return "word" if text[0] == " " else "fragment"
    if bare.isdigit():
        return "number"
    return "operator" if any(char in _OPERATORS for char in bare) else "mark"


def _ease(kind: str, text: str) -> float:
    """How predictable what follows such a piece is."""
    if text.strip() in _DIALOGUE_WORDS or (kind != "operator" and not _DIALOGUE_MARKS.isdisjoint(text)):
        return -2.0
    if kind == _UNSEEN:
        return -0.6 if not text.isascii() else 0.0
    return {
        "operator": 1.0,
        "space": 0.6,
        "head": 0.4,
        "number": 0.5,
        "word": 0.05,
        "mark": 0.0,
        "name": 0.0,
        "fragment": -0.25,
    }.get(kind, -0.6)
