"""Server-sent events out of a recorded stream, each with the moment at which it was complete."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

DONE = b"[DONE]"
"""Payload that ends an OpenAI-style stream; holds nothing."""
_PLAIN_BYTES = len(b"data: \n\n")


def split_events(
    body: bytes, sizes: Sequence[int], stamps_s: Sequence[float]
) -> tuple[list[bytes], list[float]]:
    r"""The events of one response stream, in order.

    Follows the event stream format of the HTML standard, section 9.2.6: lines end in LF, CR or CRLF, a blank
    line completes an event, `data` lines of one event are joined by `\n`, comments and other fields are
    skipped. Unlike a browser it keeps a last event that no blank line follows: servers may end without one.

    Args:
        body: everything that was read.
        sizes: bytes of every read, in order of arrival. Cut anywhere.
        stamps_s: clock of every read, in seconds.

    Returns:
        Data payload of every event that has data, `[DONE]` left out; and the clock of each, in seconds: that of
        the read in which the event's blank line began, or of the last read where there is none.
    """
    payloads = _plain_events(body)
    if payloads is not None:
        complete_at = list(accumulate(len(payload) + _PLAIN_BYTES for payload in payloads))
    else:
        payloads, complete_at = _any_events(body)
    read_ends = list(accumulate(sizes))
    if read_ends == complete_at:  # each read brought one event, as it nearly always does
        received_s = list(stamps_s)
    else:
        received_s = []
        read = 0
        for end in complete_at:
            while read_ends[read] < end:
                read += 1
            received_s.append(stamps_s[read])
    ends = [index for index, payload in enumerate(payloads) if DONE in payload and payload.strip() == DONE]
    for index in reversed(ends):
        del payloads[index], received_s[index]
    return payloads, received_s


def _plain_events(body: bytes) -> list[bytes] | None:
    """The payloads, where each event is one line `data: ...` and a blank one; None where one is not.

    As nearly all servers send it, and in a third of the time.
    """
    if not (body.startswith(b"data: ") and body.endswith(b"\n\n")) or b"\r" in body:
        return None
    payloads = body[6:-2].split(b"\n\ndata: ")
    return payloads if body.count(b"\n") == 2 * len(payloads) else None


def _any_events(body: bytes) -> tuple[list[bytes], list[int]]:
    """Payloads of all events that have data, and how many bytes there are up to the first one of the blank line."""
    payloads: list[bytes] = []
    complete_at: list[int] = []
    data: list[bytes] = []
    position = 0
    for line in body.splitlines(keepends=True):
        start, position = position, position + len(line)
        if line.startswith(b"data:"):
            value = line[6:] if line.startswith(b"data: ") else line[5:]
            data.append(value.rstrip(b"\r\n"))
        elif line in (b"\n", b"\r\n", b"\r"):
            if data:
                payloads.append(b"\n".join(data))
                complete_at.append(start + 1)
                data = []
        elif line.rstrip(b"\r\n") == b"data":
            data.append(b"")
    if data:
        payloads.append(b"\n".join(data))
        complete_at.append(len(body))
    return payloads, complete_at
