"""Server-sent events out of a recorded stream, each with the moment at which it was complete."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import compress

DONE = b"[DONE]"
"""Payload that ends an OpenAI-style stream; holds nothing."""
_PLAIN = re.compile(rb"data: (.*)\n\n")
"""An event as nearly all servers send it, matched in a third of the time that lines take."""
_PLAIN_BYTES = len(b"data: \n\n")
_LONGEST_MARK = 16
"""Bytes of `DONE`, and of white space around it."""


def split_events(
    body: bytes | bytearray, read_ends: Sequence[int], stamps_s: Sequence[float]
) -> tuple[list[bytes], list[float]]:
    r"""The events of one response stream, in order.

    Follows the event stream format of the HTML standard, section 9.2.6: lines end in LF, CR or CRLF, a blank
    line completes an event, `data` lines of one event are joined by `\n`, comments and other fields are
    skipped. Unlike a browser it keeps a last event that no blank line follows: servers may end without one.

    Args:
        body: everything that was read.
        read_ends: how many bytes of it there were after every read, in order of arrival. Cut anywhere.
        stamps_s: clock of every read, in seconds.

    Returns:
        Data payload of every event that has data, `[DONE]` left out; and the clock of each, in seconds: that of
        the read in which the event's blank line began, or of the last read where there is none.
    """
    import numpy as np

    payloads: list[bytes] = _PLAIN.findall(body)
    lengths = np.fromiter(map(len, payloads), np.int64, len(payloads))
    complete_at = np.cumsum(lengths + _PLAIN_BYTES)
    if b"\r" in body or (int(complete_at[-1]) if payloads else 0) != len(body):
        payloads, ends = _any_events(bytes(body))
        lengths = np.fromiter(map(len, payloads), np.int64, len(payloads))
        complete_at = np.array(ends, np.int64)
    short = np.flatnonzero(lengths <= _LONGEST_MARK).tolist()
    kept = np.ones(len(payloads), bool)
    kept[[number for number in short if payloads[number].strip() == DONE]] = False
    read = np.searchsorted(np.asarray(read_ends, np.int64), complete_at[kept])
    return list(compress(payloads, kept.tolist())), np.asarray(stamps_s, np.float64)[read].tolist()


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
