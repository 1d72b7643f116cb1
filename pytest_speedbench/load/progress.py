"""One line on a terminal that says how far a cell is: done, rate, time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

MIN_INTERVAL_S = 0.2
"""At most five updates a second."""


def wanted(*, is_terminal: bool, verbosity: int, environment: Mapping[str, str]) -> bool:
    """Whether a line that rewrites itself helps anybody.

    Args:
        is_terminal: whether the output goes to one.
        verbosity: pytest's; below 0 under `-q`.
        environment: of the process; CI systems set `CI`, and a `dumb` terminal knows no carriage return.
    """
    return is_terminal and verbosity >= 0 and not environment.get("CI") and environment.get("TERM") != "dumb"


class Progress:
    """Counts finished requests (never chunks: those are on the clock) and rewrites one line in place.

    Args:
        label: what is measured, such as a cell's id.
        write: takes text for the terminal; None to stay quiet.
        columns: width of the terminal; the line is cut rather than wrapped.
        column: where the cursor is before the first line is drawn, counted from 0; `end` puts it back there, so
            that pytest goes on with its own line as if nothing had been written.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        label: str,
        write: Callable[[str], None] | None,
        *,
        columns: int = 80,
        column: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = label
        self._write = write
        self._columns = columns
        self._column = column
        self._clock = clock
        self._total = self._done = self._tokens = 0
        self._tokens_known = True
        self._begun_s = self._drawn_s = 0.0
        self._drawn = ""

    def begin(self, total: int) -> None:
        """Start over with `total` requests to come, all rounds of the cell together."""
        self._total, self._done, self._tokens, self._tokens_known = total, 0, 0, True
        self._begun_s = self._clock()
        self._draw()

    def finished(self, output_tokens: int | None) -> None:
        """One more request has ended, with as many output tokens; None where they are not known yet."""
        self._done += 1
        if output_tokens is None:
            self._tokens_known = False
        else:
            self._tokens += output_tokens
        self.tick()

    def tick(self) -> None:
        """Show that time goes on, unless the line was written just now."""
        if self._clock() - self._drawn_s >= MIN_INTERVAL_S:
            self._draw()

    def end(self) -> None:
        """Wipe the line."""
        if self._write is not None and self._drawn:
            column = self._column()
            self._write("\r\x1b[K\x1b[A" + (f"\x1b[{column}C" if column else ""))
        self._drawn = ""

    def line(self) -> str:
        """The line as it stands now."""
        elapsed_s = self._clock() - self._begun_s
        parts = [f"{self._done}/{self._total} requests"]
        if self._done and elapsed_s > 0:
            if self._tokens_known:
                parts.append(f"{self._tokens / elapsed_s:,.0f} tok/s")
            else:
                parts.append(f"{self._done / elapsed_s:.1f} requests/s")
            parts.append(f"{_duration(elapsed_s * (self._total - self._done) / self._done)} left")
        elif elapsed_s >= 1:
            parts.append(f"{_duration(elapsed_s)} gone")
        return f"{self._label}  {', '.join(parts)}"[: self._columns - 1]

    def say(self, text: str) -> None:
        """Show a few words instead of a count, as while an engine starts."""
        self._draw(f"{self._label}  {text}"[: self._columns - 1])

    def _draw(self, line: str | None = None) -> None:
        if self._write is None:
            return
        line = self.line() if line is None else line
        self._write(("\r\x1b[K" if self._drawn else "\n") + line)
        self._drawn = line
        self._drawn_s = self._clock()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
