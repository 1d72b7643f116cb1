"""A run on cards whose driver reports throttling, with stand-ins for `nvidia-smi` and `pynvml`."""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests.integration.conftest import Run

PYNVML = """
    import time
    from types import SimpleNamespace

    NVML_PERF_POLICY_POWER, NVML_PERF_POLICY_THERMAL, NVML_PERF_POLICY_BOARD_LIMIT = 0, 1, 3

    class NVMLError(Exception):
        pass

    def nvmlInit():
        pass

    def nvmlSystemGetDriverVersion():
        return "580.65.06"

    def nvmlDeviceGetHandleByUUID(uuid):
        return uuid

    def nvmlDeviceGetViolationStatus(card, policy):
        return SimpleNamespace(violationTime=time.monotonic_ns() // 2 if policy == NVML_PERF_POLICY_POWER else 0)
"""


def test_throttling_is_a_note_and_the_driver_a_condition(
    pytester: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(pynvml=PYNVML)
    pytester.syspathinsert()
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    programs = pytester.mkdir("programs")
    (programs / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: modelled accelerator (UUID: GPU-aaaa-1)'\n")
    (programs / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    assert run("--speedbench-save", "--speedbench-json=results.json").ret == 0
    document = json.loads((pytester.path / "results.json").read_text())
    for cell in document["cells"][:2]:
        (note,) = [note for note in cell["notes"] if "throttled" in note]
        assert note == (
            "the accelerator was throttled (power limit) for 50% of a round (50% of all rounds): an unchanged engine is "
            "slower then"
        )
    assert document["conditions"]["driver"] == "580.65.06"
    assert (
        "driver: 580.65.06\n" in (pytester.path / "baselines" / "reference-draft_model-k3.yaml").read_text()
    )
