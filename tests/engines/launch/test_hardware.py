"""What an engine computes on: cards, slices of cards, and machines that only their user can name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_speedbench.engines.launch.hardware import accelerators, attached, launched
from pytest_speedbench.settings.target import Target

CARDS = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa-1)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb-2)
"""
SLICES = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa-1)
  MIG 3g.40gb     Device  0: (UUID: MIG-c738-1)
  MIG 1g.10gb     Device  1: (UUID: MIG-a28a-2)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb-2)
  MIG 1g.10gb+me  Device  0: (UUID: MIG-GPU-bbbb-2/7/0)
"""
LARGE = "NVIDIA H100 80GB HBM3 MIG 3g.40gb"
SMALL = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"

Listing = Callable[[str], None]


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Listing:
    """Puts an nvidia-smi on PATH whose `-L` prints a listing."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(listing: str) -> None:
        (tmp_path / "listing").write_text(listing)
        program = tmp_path / "nvidia-smi"
        program.write_text(f'#!/bin/sh\n[ "$*" = -L ] && cat {tmp_path}/listing\n')
        program.chmod(0o755)

    return install


@pytest.mark.parametrize(
    ("listing", "visible", "names"),
    [
        (CARDS, None, ("NVIDIA A100-SXM4-40GB", "NVIDIA H100 80GB HBM3")),
        (CARDS, "1", ("NVIDIA H100 80GB HBM3",)),
        (CARDS, "GPU-bbbb", ("NVIDIA H100 80GB HBM3",)),
        (CARDS, "1,GPU-aaaa-1", ("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-40GB")),
        (CARDS, "5", ("NVIDIA A100-SXM4-40GB", "NVIDIA H100 80GB HBM3")),
        (SLICES, None, (LARGE, SMALL, f"{SMALL}+me")),
        (SLICES, "MIG-a28a-2", (SMALL,)),
        (SLICES, "MIG-GPU-bbbb-2/7/0", (f"{SMALL}+me",)),
        (SLICES, "1", (SMALL,)),
        ("No devices found.", None, ()),
    ],
)
def test_the_devices_that_an_engine_would_see(
    nvidia_smi: Listing, listing: str, visible: str | None, names: tuple[str, ...]
) -> None:
    nvidia_smi(listing)
    assert accelerators(environment={} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == names


def test_a_slice_is_not_filed_as_its_card(nvidia_smi: Listing, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(SLICES)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a28a-2")
    assert launched(accelerators(), 1).key == "NVIDIA H100 80GB HBM3 MIG 1g.10gb x 1"


@pytest.mark.parametrize(
    ("hardware", "key"),
    [
        (None, "unknown, at gpu-17:8000 x 1"),
        ("NVIDIA H100 80GB HBM3 x 8", "NVIDIA H100 80GB HBM3 x 8"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3 x 1"),
        ("rack x y", "rack x y x 1"),
    ],
)
def test_a_machine_that_its_user_names(hardware: str | None, key: str) -> None:
    target = Target("t", "vllm", "none", 0, url="http://gpu-17:8000", hardware=hardware)
    assert attached(target).key == key
