from __future__ import annotations

import re

import pytest

from pytest_speedbench.load.progress import Progress, wanted


class Screen:
    """What a terminal shows: pytest's own line, the line below it; and a clock to move by hand."""

    PYTEST = "tests/test_gate.py .."

    def __init__(self) -> None:
        self.now_s = 100.0
        self.writes: list[str] = []

    def clock(self) -> float:
        return self.now_s

    def progress(self, columns: int = 80) -> Progress:
        return Progress(
            "qualitative-coding-bs4",
            self.writes.append,
            columns=columns,
            column=lambda: len(self.PYTEST),
            clock=self.clock,
        )

    @property
    def shown(self) -> tuple[list[str], int, int]:
        """The lines, and the cursor's row and column."""
        rows, row, column = [self.PYTEST, ""], 0, len(self.PYTEST)
        for part in re.findall(r"\x1b\[\d*[A-Z]|.", "".join(self.writes), re.DOTALL):
            if part == "\r":
                column = 0
            elif part == "\n":
                row, column = row + 1, 0
            elif part == "\x1b[K":
                rows[row] = rows[row][:column]
            elif part == "\x1b[A":
                row -= 1
            elif part.endswith("C"):
                column += int(part[2:-1])
            else:
                rows[row] = rows[row][:column].ljust(column) + part + rows[row][column + 1 :]
                column += 1
        return rows, row, column

    @property
    def line(self) -> str:
        return self.shown[0][1]


def test_the_line_says_what_is_done_how_fast_and_how_long_it_will_take() -> None:
    screen = Screen()
    progress = screen.progress()
    progress.begin(80)
    for _ in range(20):
        progress.finished(2_000)
    screen.now_s += 10
    progress.tick()
    assert screen.line == "qualitative-coding-bs4  20/80 requests, 4,000 tok/s, 30 s left"


def test_minutes_are_told_apart_from_seconds() -> None:
    screen = Screen()
    progress = screen.progress()
    progress.begin(2)
    screen.now_s += 125
    progress.finished(1_250)
    assert screen.line.endswith("1/2 requests, 10 tok/s, 2 min 05 s left")


def test_requests_are_counted_where_tokens_are_not_known_yet() -> None:
    screen = Screen()
    progress = screen.progress()
    progress.begin(10)
    screen.now_s += 2
    progress.finished(None)
    assert screen.line.endswith("1/10 requests, 0.5 requests/s, 18 s left")


def test_a_long_first_request_shows_that_time_goes_on() -> None:
    screen = Screen()
    progress = screen.progress()
    progress.begin(10)
    screen.now_s += 7
    progress.tick()
    assert screen.line.endswith("0/10 requests, 7 s gone")


def test_at_most_five_updates_a_second() -> None:
    screen = Screen()
    progress = screen.progress()
    progress.begin(1_000)
    for _ in range(1_000):
        screen.now_s += 0.001
        progress.finished(1)
    assert len(screen.writes) <= 1 + 5


def test_a_shorter_line_leaves_nothing_of_a_longer_one() -> None:
    screen = Screen()
    progress = screen.progress()
    progress.begin(2)
    screen.now_s += 600
    progress.finished(1_000_000)
    screen.now_s += 1
    progress.finished(1)
    assert screen.line.endswith("2/2 requests, 1,664 tok/s, 0 s left")


def test_the_line_is_wiped_at_the_end() -> None:
    screen = Screen()
    progress = screen.progress()
    progress.begin(2)
    progress.end()
    assert screen.shown == ([screen.PYTEST, ""], 0, len(screen.PYTEST))


def test_a_narrow_terminal_gets_a_cut_line() -> None:
    screen = Screen()
    screen.progress(columns=30).begin(2)
    assert len(screen.line) == 29


def test_nothing_is_written_without_a_writer() -> None:
    progress = Progress("cell", None)
    progress.begin(1)
    progress.finished(1)
    progress.end()
    assert "1/1 requests" in progress.line()


@pytest.mark.parametrize(
    ("is_terminal", "verbosity", "environment", "expected"),
    [
        (True, 0, {"TERM": "xterm"}, True),
        (True, 2, {}, True),
        (False, 0, {}, False),
        (True, -1, {}, False),
        (True, 0, {"CI": "true"}, False),
        (True, 0, {"CI": ""}, True),
        (True, 0, {"TERM": "dumb"}, False),
    ],
)
def test_wanted_on_a_terminal_only_and_neither_in_ci_nor_when_quiet(
    is_terminal: bool, verbosity: int, environment: dict[str, str], expected: bool
) -> None:
    assert wanted(is_terminal=is_terminal, verbosity=verbosity, environment=environment) is expected


def test_words_take_the_place_of_a_count() -> None:
    screen = Screen()
    progress = screen.progress()
    progress.say("waiting for /health, 20 s")
    assert screen.line == "qualitative-coding-bs4  waiting for /health, 20 s"
    progress.end()
    assert screen.line == ""
