"""What the NVIDIA driver reports of the cards that an engine computes on, where `nvidia-ml-py` is installed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_LIMITS = {
    "NVML_PERF_POLICY_POWER": "power",
    "NVML_PERF_POLICY_THERMAL": "thermal",
    "NVML_PERF_POLICY_BOARD_LIMIT": "board",
}
"""What holds a card below the clocks that it is set to, by its name in NVML (`nvmlPerfPolicyType_t`)."""


@dataclass(frozen=True)
class HeldDown:
    """How long limits have held cards below their clocks since the driver was loaded."""

    read_s: float
    """Monotonic clock."""
    held_s: Mapping[tuple[int, str], float] = field(default_factory=dict)
    """By card, as numbered here, and limit: the words of `_LIMITS`."""

    def shares_since(self, before: HeldDown) -> dict[str, float]:
        """Share of the time since an earlier reading, 0..1, by limit: that of the card that was held down longest."""
        passed_s = self.read_s - before.read_s
        shares: dict[str, float] = {}
        for (card, limit), held_s in self.held_s.items():
            if (card, limit) in before.held_s and passed_s > 0:
                share = min(max((held_s - before.held_s[card, limit]) / passed_s, 0.0), 1.0)
                shares[limit] = max(share, shares.get(limit, 0.0))
        return shares


class NvidiaDriver:
    """Asks the driver by NVML; whatever is not there, or not supported by a card, is left out.

    Args:
        uuids: of the cards that are asked about. The clocks of a MIG slice are those of its card.
    """

    version: str | None = None
    """Such as `580.65.06`; None where it is not known."""

    def __init__(self, uuids: Sequence[str]) -> None:
        self._nvml: Any = None
        self._cards: list[Any] = []
        if not uuids:
            return
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
            self.version = str(pynvml.nvmlSystemGetDriverVersion())
            self._cards = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
        except pynvml.NVMLError:
            return
        self._nvml = pynvml

    def held_down(self) -> HeldDown:
        """Read how long each card was held down, in all."""
        held_s: dict[tuple[int, str], float] = {}
        for number, card in enumerate(self._cards if self._nvml else ()):
            for name, limit in _LIMITS.items():
                try:
                    status = self._nvml.nvmlDeviceGetViolationStatus(card, getattr(self._nvml, name))
                except self._nvml.NVMLError:  # this card does not count it
                    continue
                held_s[number, limit] = status.violationTime / 1e9  # nvmlViolationTime_t: nanoseconds
        return HeldDown(time.monotonic(), held_s)
