"""Speculative decoding as published: draft, verify with min(1, p / q), resample from the residual on rejection.

Leviathan, Kalman, Matias: Fast Inference from Transformers via Speculative Decoding (2023), algorithm 1. Chen et
al.: Accelerating Large Language Model Decoding with Speculative Sampling (2023). The tokens have the distribution
of the target model alone, whatever the drafter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_speedbench.engines.reference import distributions
from pytest_speedbench.engines.reference.distributions import Shape, choose, mixture
from pytest_speedbench.engines.reference.models import Context, ModelPair, Outlook
from pytest_speedbench.engines.reference.randomness import Randomness

METHODS = ("none", "ngram", "draft_model")
LOOKUP_MAX = 4
LOOKUP_MIN = 2
"""Longest and shortest suffix of the context that prompt lookup searches for."""


@dataclass(frozen=True)
class Step:
    """One forward pass of the target model for one request."""

    tokens: tuple[int, ...]
    """Accepted draft tokens, then the target's own; at least one."""
    drafted: int
    """Tokens proposed; 0 where prompt lookup found nothing."""

    @property
    def accepted(self) -> int:
        """Draft tokens accepted."""
        return len(self.tokens) - 1


@dataclass(frozen=True)
class Proposal:
    """One drafted token, with what the target says of its position."""

    token: int
    context: Context
    """What stands before the token."""
    outlook: Outlook
    q: tuple[float, ...]
    """The drafter's distribution over the target's candidates; it may hold less than 1 in all."""
    q_token: float
    """The drafter's probability of the token, at which it was drawn."""


class Decoding:
    """One generation.

    Args:
        models: target and drafter.
        prompt: token ids, at least one.
        method: one of `METHODS`.
        draft_length: k.
        temperature: 0 for greedy.
        randomness: all its draws.
        may_end: whether `<|end|>` may be generated.
    """

    def __init__(
        self,
        models: ModelPair,
        prompt: Sequence[int],
        *,
        method: str,
        draft_length: int,
        temperature: float,
        randomness: Randomness,
        may_end: bool = False,
    ) -> None:
        self.context: Context = models.start(prompt, may_end=may_end)
        self._models = models
        self._method = method
        self._draft_length = draft_length
        self._random = randomness
        self._shape = Shape().at(temperature)
        self._p = self._shape.target()

    def first(self) -> int:
        """The token that prefill yields: no step, no draft."""
        token = self._sample(self._outlook(self.context), self.context)
        self.context = self._models.extend(self.context, token)
        return token

    def step(self) -> Step:
        """Draft, verify, and move the context to the end of what was accepted and the target's own token."""
        proposals = self._draft()
        tokens: list[int] = []
        for proposal in proposals:
            candidates = proposal.outlook.candidates
            p = self._p[candidates.index(proposal.token)] if proposal.token in candidates else 0.0
            position = proposal.context.generated
            if self._random.accept(position) < distributions.accept_probability(p, proposal.q_token):
                tokens.append(proposal.token)
                continue
            rest = distributions.residual(self._p, proposal.q)
            own = candidates[choose(rest, self._random.sample(position))]
            return self._advance(proposal.context, tokens, own, len(proposals))
        context = self._models.extend(proposals[-1].context, tokens[-1]) if proposals else self.context
        return self._advance(context, tokens, self._sample(self._outlook(context), context), len(proposals))

    def _advance(self, context: Context, tokens: list[int], own: int, drafted: int) -> Step:
        self.context = self._models.extend(context, own)
        return Step((*tokens, own), drafted)

    def _outlook(self, context: Context) -> Outlook:
        return self._models.outlook(context, self._shape.candidates)

    def _sample(self, outlook: Outlook, context: Context) -> int:
        return outlook.candidates[choose(self._p, self._random.sample(context.generated))]

    def _draft(self) -> list[Proposal]:
        if self._method == "draft_model":
            return self._draft_with_model()
        if self._method == "ngram":
            return self._draft_by_lookup()
        return []

    def _draft_with_model(self) -> list[Proposal]:
        proposals = []
        context = self.context
        for _ in range(self._draft_length):
            outlook = self._outlook(context)
            q = mixture(self._p, outlook.disagreement)
            index = choose(q, self._random.propose(context.generated))
            proposals.append(Proposal(outlook.candidates[index], context, outlook, q, q[index]))
            context = self._models.extend(context, outlook.candidates[index])
        return proposals

    def _draft_by_lookup(self) -> list[Proposal]:
        proposals = []
        context = self.context
        for token in look_up(context.text, self._draft_length):
            outlook = self._outlook(context)
            q = tuple(1.0 if candidate == token else 0.0 for candidate in outlook.candidates)
            proposals.append(Proposal(token, context, outlook, q, 1.0))
            context = self._models.extend(context, token)
        return proposals


def look_up(text: str, length: int) -> list[int]:
    """Prompt lookup: what followed the most recent earlier occurrence of the longest suffix that has one.

    Args:
        text: token ids as code points, as in `Context`.
        length: tokens wanted; fewer come where the text ends before.

    Returns:
        Token ids; none where no suffix of `LOOKUP_MIN` to `LOOKUP_MAX` tokens stands earlier in the text.
    """
    end = len(text) - 1
    for size in range(min(LOOKUP_MAX, end), LOOKUP_MIN - 1, -1):
        at = text.rfind(text[-size:], 0, end)
        if at >= 0:
            return [ord(char) for char in text[at + size : at + size + length]]
    return []
