"""Server-sent events out of a recorded stream, each with the moment at which it was complete."""

from __future__ import annotations

from collections.abc import Sequence

DONE = b"[DONE]"
"""Payload that ends an OpenAI-style stream; holds nothing."""


def split_events(chunks: Sequence[tuple[float, bytes]]) -> list[tuple[float, bytes]]:
    r"""The events of one response stream, in order.

    Follows the event stream format of the HTML standard, section 9.2.6: lines end in LF, CR or CRLF, a blank
    line completes an event, `data` lines of one event are joined by `\n`, comments and other fields are
    skipped. Unlike a browser it keeps a last event that no blank line follows: servers may end without one.

    Args:
        chunks: (clock in seconds, bytes) of every read, in order of arrival. Cut anywhere.

    Returns:
        (clock in seconds, data payload) of every event that has data, `[DONE]` left out. The clock is that of
        the read in which the event's blank line began, or of the last read where there is none.
    """
    events: list[tuple[float, bytes]] = []
    data: list[bytes] = []
    read = 0
    read_ends = len(chunks[0][1]) if chunks else 0
    position = 0
    for line in b"".join([part for _, part in chunks]).splitlines(keepends=True):
        start, position = position, position + len(line)
        if line.startswith(b"data:"):
            value = line[6:] if line.startswith(b"data: ") else line[5:]
            data.append(value.rstrip(b"\r\n"))
        elif line in (b"\n", b"\r\n", b"\r"):
            while read_ends <= start:
                read += 1
                read_ends += len(chunks[read][1])
            _complete(events, data, chunks[read][0])
        elif line.rstrip(b"\r\n") == b"data":
            data.append(b"")
    if chunks:
        _complete(events, data, chunks[-1][0])
    return events


def _complete(events: list[tuple[float, bytes]], data: list[bytes], received_s: float) -> None:
    if not data:
        return
    payload = data[0] if len(data) == 1 else b"\n".join(data)
    if payload.strip() != DONE:
        events.append((received_s, payload))
    data.clear()
