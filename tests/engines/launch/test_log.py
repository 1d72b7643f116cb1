"""What is shown of a launch: the end of its log, and its command without the secrets. Files: `test_process.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_speedbench.engines.launch.log import mask, replaceable, tail


@pytest.mark.parametrize(
    ("command", "shown", "secrets"),
    [
        ("serve --api-key=abcdef", "serve --api-key=MASKED", ("abcdef",)),
        (
            "serve --api-key abcdef ghijkl --port 1",
            "serve --api-key MASKED MASKED --port 1",
            ("abcdef", "ghijkl"),
        ),
        ("env HF_TOKEN=abcdef serve", "env HF_TOKEN=MASKED serve", ("abcdef",)),
        ("serve --api-key --port 1", "serve --api-key --port 1", ()),
        ("serve --max-tokens 8", "serve --max-tokens 8", ()),
        ("serve --api-key=abc", "serve --api-key=MASKED", ()),
    ],
)
def test_secrets_are_taken_out_of_a_command(command: str, shown: str, secrets: tuple[str, ...]) -> None:
    """What follows in a text is replaced only where it is too long to be part of another word."""
    assert mask(command.split()) == (shown.split(), secrets)


def test_what_is_too_short_to_be_replaced_in_a_text() -> None:
    assert replaceable(["abc", "abcd", ""]) == ("abcd",)


def test_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("the command\n" + "".join(f"line {number}\n" for number in range(100_000)))
    assert tail(log, 12, 2) == "line 99998\nline 99999"
    assert len(tail(log, 12, 10**6)) < 2**16 + 10, "no more than its last 64 KiB"


def test_what_stands_before_the_start_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("the command\nloading 1 %\rloading 99 %\r\nready\n")
    assert tail(log, 12, 10) == "loading 99 %\nready"
