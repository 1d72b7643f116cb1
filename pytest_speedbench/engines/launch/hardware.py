"""What this machine computes on: the names of its accelerators, or of its CPU."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pytest_speedbench.engines.base import Hardware

_CPU_INFO = Path("/proc/cpuinfo")
_ANSWER_S = 120.0
_TORCH = """
import torch
device = torch.cuda if torch.cuda.is_available() else getattr(torch, "xpu", None)
for number in range(device.device_count() if device and device.is_available() else 0):
    print(device.get_device_name(number))
"""


def cpu() -> str:
    """The CPU's model name and the cores that this process may use: `AMD EPYC 9654 96-Core Processor, 8 cores`."""
    name = platform.processor() or platform.machine()
    try:
        for line in _CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def accelerators(python: str | None = None) -> tuple[str, ...]:
    """Names of the accelerators that an engine launched here would see, in order; empty where there are none.

    Args:
        python: an interpreter whose torch is asked where there is no `nvidia-smi` (AMD and Intel); None to ask
            none.
    """
    names = _lines(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    if names:
        return _visible(names, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return _lines([python, "-c", _TORCH]) if python else ()


def launched(names: Sequence[str], count: int) -> Hardware:
    """What an engine launched here computes on.

    Args:
        names: accelerators that it sees; empty for a CPU.
        count: how many of them it was told to use.
    """
    return Hardware(_together(names[:count]), count) if names else Hardware(cpu())


def attached(url: str) -> Hardware:
    """What a server that already runs computes on; of one on another machine only its address is known."""
    address = urlsplit(url)
    if address.hostname not in ("127.0.0.1", "localhost", "::1"):
        return Hardware(f"unknown, at {address.netloc}")
    names = accelerators()
    # How many of them the server uses, it does not tell.
    return Hardware(f"{_together(names)}, attached" if names else cpu())


def _together(names: Sequence[str]) -> str:
    return " + ".join(dict.fromkeys(names))


def _visible(names: tuple[str, ...], chosen: str | None) -> tuple[str, ...]:
    """Keep the devices that `CUDA_VISIBLE_DEVICES` lists by number; a list of UUIDs keeps them all."""
    numbers = [part.strip() for part in (chosen or "").split(",")]
    if not all(number.isdigit() and int(number) < len(names) for number in numbers):
        return names
    return tuple(names[int(number)] for number in numbers)


def _lines(command: list[str]) -> tuple[str, ...]:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    if answer.returncode != 0:
        return ()
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())
