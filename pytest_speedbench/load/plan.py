"""What is asked of a round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_speedbench.settings.options import REQUEST_TIMEOUT_S

if TYPE_CHECKING:
    from pytest_speedbench.load.conversation import Prepared


@dataclass(frozen=True)
class RoundPlan:
    """How a cell's prompts are sent."""

    batch_size: int
    """Requests in flight at once."""
    conversations: int | None = None
    """How many; None for each prompt once, or as many as fill the batch."""
    request_timeout_s: float = REQUEST_TIMEOUT_S
    """A request fails when nothing arrived on it for so long. If nothing arrived on any other one either, the engine
    hangs, and no more requests are sent."""

    def order(self, prepared: Prepared) -> Iterator[tuple[int, int]]:
        """(index of the prompt, repeat) of every conversation of a round: prompts in turn, over and over."""
        prompts = len(prepared.prompts)
        how_many = max(prompts, self.batch_size) if self.conversations is None else self.conversations
        return ((number % prompts, number // prompts) for number in range(how_many))

    def requests(self, prepared: Prepared) -> int:
        """Requests of a round: the turns of all its conversations."""
        return sum(len(prepared.prompts[index].turns) for index, _ in self.order(prepared))
