"""The port that an engine is given."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from pytest_speedbench.engines.launch import ports


def test_is_none_that_the_system_gives_to_whoever_asks() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("asks Linux")
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if lowest <= 10_000:
        pytest.skip("this system gives all ports to whoever asks")
    assert 10_000 <= ports.free() < lowest


@pytest.mark.parametrize("given", ["32768\t60999\n", "1024\t65535\n", "10001 65535\n", None])
def test_is_free_whatever_the_system_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    told = tmp_path / "range"
    if given:
        told.write_text(given)
    monkeypatch.setattr(ports, "_GIVEN_PORTS", told)
    with socket.socket() as taker:
        taker.bind(("127.0.0.1", ports.free()))


def test_is_none_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the two that are left to choose from one is taken."""
    with socket.socket() as taker:
        taken = ports.free()
        taker.bind(("127.0.0.1", taken))
        monkeypatch.setattr(ports, "_LOWEST_PORT", taken)
        told = tmp_path / "range"
        told.write_text(f"{taken + 2} 65535")
        monkeypatch.setattr(ports, "_GIVEN_PORTS", told)
        assert taken not in {ports.free() for _ in range(20)}
