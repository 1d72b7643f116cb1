from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.load.wire.events import split_events

LINE_ENDS = (b"\n", b"\r\n", b"\r")


def events_of(chunks: list[tuple[float, bytes]]) -> list[tuple[float, bytes]]:
    stream = b"".join(data for _, data in chunks)
    read_ends = list(accumulate(len(data) for _, data in chunks))
    return [
        (received_s, payload)
        for payload, received_s in zip(
            *split_events(stream, read_ends, [stamp for stamp, _ in chunks]), strict=True
        )
    ]


def payloads(stream: bytes) -> list[bytes]:
    return [payload for _, payload in events_of([(0.0, stream)])]


@dataclass(frozen=True)
class Recorded:
    """A stream together with what it must be read as."""

    stream: bytes
    payloads: tuple[bytes, ...]
    complete_at: tuple[int, ...]
    """Bytes that must have been read before each event is known to be complete."""


@st.composite
def recorded_streams(draw: st.DrawFn) -> Recorded:
    text = st.text('a :{}"é日🙂\u2028', max_size=12) | st.just("[DONE]")
    stream, expected, complete_at = b"", [], []
    for _ in range(draw(st.integers(0, 6))):
        end = draw(st.sampled_from(LINE_ENDS))
        if draw(st.booleans()):
            stream += b": keep-alive " + draw(text).encode() + end
        if draw(st.booleans()):
            stream += b"event: token" + end
        lines = [line.encode() for line in draw(st.lists(text, min_size=1, max_size=3))]
        for line in lines:
            space = b" " if line.startswith(b" ") or draw(st.booleans()) else b""
            stream += b"data:" + space + line + end
        stream += end
        payload = b"\n".join(lines)
        if payload.strip() != b"[DONE]":
            expected.append(payload)
            complete_at.append(len(stream) - len(end) + 1)
    return Recorded(stream, tuple(expected), tuple(complete_at))


def cut(stream: bytes, places: list[int]) -> list[tuple[float, bytes]]:
    """The stream in reads that end at `places`; each read's stamp is the offset of its end."""
    ends = sorted({min(place, len(stream)) for place in places} | {len(stream)})
    starts = [0, *ends[:-1]]
    return [(float(end), stream[start:end]) for start, end in zip(starts, ends, strict=True)]


@given(recorded_streams(), st.lists(st.integers(0, 400), max_size=8))
def test_reads_cut_anywhere_give_the_same_events_stamped_by_the_read_that_completed_them(
    recorded: Recorded, places: list[int]
) -> None:
    chunks = cut(recorded.stream, places)

    events = events_of(chunks)

    assert tuple(payload for _, payload in events) == recorded.payloads
    for (received_s, _), complete_at in zip(events, recorded.complete_at, strict=True):
        assert received_s == next(stamp for stamp, _ in chunks if stamp >= complete_at)


@pytest.mark.parametrize("end", LINE_ENDS, ids=["lf", "crlf", "cr"])
def test_every_single_cut_of_one_stream(end: bytes) -> None:
    events = ['{"text": "é"}', '{"text": "日本"}', '{"text": "🙂", "finish": "length"}']
    blocks = [f"data: {text}".encode() + end + end for text in events]
    stream = b"".join(blocks) + b"data: [DONE]" + end + end
    complete_at = [total - len(end) + 1 for total in accumulate(len(block) for block in blocks)]

    for place in range(len(stream) + 1):
        first, second = stream[:place], stream[place:]
        found = events_of([(1.0, first), (2.0, second)])
        assert [payload.decode() for _, payload in found] == events
        assert [stamp for stamp, _ in found] == [1.0 if place >= at else 2.0 for at in complete_at]


def test_many_events_of_one_read_share_its_stamp() -> None:
    assert events_of([(3.5, b"data: a\n\ndata: b\n\n")]) == [(3.5, b"a"), (3.5, b"b")]


def test_the_end_mark_is_left_out() -> None:
    assert payloads(b"data: a\n\ndata: [DONE]\n\n") == [b"a"]


def test_a_last_event_needs_no_blank_line_and_is_stamped_by_the_last_read() -> None:
    assert events_of([(1.0, b"data: a\n\ndata: b"), (2.0, b"c\n")]) == [(1.0, b"a"), (2.0, b"bc")]


def test_one_space_after_the_colon_is_not_part_of_the_data() -> None:
    assert payloads(b"data:a\n\ndata: b\n\ndata:  c\n\n") == [b"a", b"b", b" c"]


def test_lines_of_one_event_are_joined() -> None:
    assert payloads(b"data: {\ndata:\ndata\ndata: }\n\n") == [b"{\n\n\n}"]


def test_comments_other_fields_and_events_without_data_are_skipped() -> None:
    assert payloads(b": ping\n\nevent: x\nid: 1\n\nretry: 5\ndatabase: x\ndata: a\n\n\n\n") == [b"a"]


@pytest.mark.parametrize("separator", ["\u2028", "\x0b", "\x0c", "\x1c", "\x85"])
def test_only_cr_and_lf_end_lines(separator: str) -> None:
    text = f'{{"text": "a{separator}b"}}'
    assert payloads(f"data: {text}\n\n".encode()) == [text.encode()]


def test_nothing_read_is_no_event() -> None:
    assert events_of([]) == []
    assert events_of([(1.0, b"")]) == []


@given(st.lists(st.sampled_from(["a", "[DONE]", "data: ", "[1]", ""]), min_size=1), st.data())
def test_streams_of_the_plainest_kind_are_read_as_all_others(texts: list[str], data: st.DataObject) -> None:
    """A comment at the end makes no difference, and takes the long way."""
    stream = b"".join(f"data: {text}\n\n".encode() for text in texts)
    places = data.draw(st.lists(st.integers(0, len(stream))))
    chunks = cut(stream, places)
    assert events_of(chunks) == events_of([*chunks, (float(len(stream)), b": end\n\n")])
    assert [payload.decode() for _, payload in events_of(chunks)] == [t for t in texts if t != "[DONE]"]
