"""What this machine computes on: the names of its accelerators, or of its CPU."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pytest_speedbench.engines.base import Hardware
from pytest_speedbench.settings.target import Target, is_local

_CPU_INFO = Path("/proc/cpuinfo")
_ANSWER_S = 120.0
_CARD = re.compile(r"GPU \d+: (?P<name>.+?) \(UUID: (?P<uuid>[^)]+)\)")
_SLICE = re.compile(r"\s+MIG (?P<profile>\S+)\s+Device\s+\d+: \(UUID: (?P<uuid>[^)]+)\)")
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


def accelerators(python: str | None = None, environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Names of the accelerators that an engine launched here would see, in order; empty if there are none.

    A MIG slice is named with its profile, which holds its share of the card's compute and memory:
    `NVIDIA H100 80GB HBM3 MIG 1g.10gb`.

    Args:
        python: an interpreter whose torch is asked if there is no `nvidia-smi` (AMD and Intel); None to ask none.
        environment: what the engine will run in; None for that of this process.
    """
    environment = os.environ if environment is None else environment
    devices = _nvidia(_output(["nvidia-smi", "-L"]))
    if devices:
        return _visible(devices, environment.get("CUDA_VISIBLE_DEVICES"))
    return _lines(_output([python, "-c", _TORCH], environment)) if python else ()


def launched(names: Sequence[str], count: int) -> Hardware:
    """What an engine launched here computes on.

    Args:
        names: accelerators that it sees; empty for a CPU.
        count: how many of them it was told to use.
    """
    return Hardware(_together(names[:count]), count) if names else Hardware(cpu())


def attached(target: Target) -> Hardware:
    """What a server that already runs computes on: as the target names it, else what this machine has.

    Of a server on another machine that the target does not name only the address is known.
    """
    if target.hardware is not None:
        name, _, count = target.hardware.rpartition(" x ")
        return Hardware(name, int(count)) if name and count.isdigit() else Hardware(target.hardware)
    address = urlsplit(target.url or "")
    if not is_local(target.url or ""):
        return Hardware(f"unknown, at {address.netloc}")
    names = accelerators()
    # The server does not say how many of them it uses.
    return Hardware(f"{_together(names)}, attached" if names else cpu())


def _together(names: Sequence[str]) -> str:
    return " + ".join(dict.fromkeys(names))


@dataclass(frozen=True)
class _Device:
    """What CUDA may compute on: a card, or a slice of one that is split."""

    name: str
    uuid: str


def _nvidia(listing: str) -> tuple[_Device, ...]:
    """The devices that `nvidia-smi -L` lists; of a card that is split, its slices instead of the card."""
    devices: list[_Device] = []
    card = ""
    for line in listing.splitlines():
        if found := _CARD.match(line):
            card = found["name"]
            devices.append(_Device(card, found["uuid"]))
        elif found := _SLICE.match(line):
            if devices and devices[-1].name == card:
                devices.pop()
            devices.append(_Device(f"{card} MIG {found['profile']}", found["uuid"]))
    return tuple(devices)


def _visible(devices: tuple[_Device, ...], chosen: str | None) -> tuple[str, ...]:
    """Names of the devices that `CUDA_VISIBLE_DEVICES` lists, by number or by the beginning of a UUID.

    A list that names a device which is not there keeps them all: it is CUDA's to refuse.
    """
    names = tuple(device.name for device in devices)
    if not chosen:
        return names
    visible: list[str] = []
    for part in chosen.split(","):
        wanted = part.strip()
        if wanted.isdigit():
            found = names[int(wanted) : int(wanted) + 1]
        else:
            found = tuple(device.name for device in devices if wanted and device.uuid.startswith(wanted))
        if not found:
            return names
        visible.append(found[0])
    return tuple(visible)


def _output(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    """What a program prints; nothing if it does not run or fails."""
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_ANSWER_S, env=environment, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())
