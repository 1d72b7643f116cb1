"""Responses on the wire: real streams of engines, framed in every way that HTTP/1.1 has, cut anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.engines.base import Engine
from pytest_speedbench.engines.llamacpp import LlamaCppEngine
from pytest_speedbench.engines.openai_endpoint import OpenAiEndpoint
from pytest_speedbench.engines.sglang import SglangEngine
from pytest_speedbench.engines.vllm import VllmEngine
from pytest_speedbench.load.decode import Exchange, decode
from pytest_speedbench.load.records import RequestRecord
from pytest_speedbench.load.wire.recording import Recording
from pytest_speedbench.load.wire.response import Head, Malformed, ResponseReader, body_of
from pytest_speedbench.settings.target import Target

RECORDED = Path(__file__).parents[2] / "engines" / "recorded"


def target(engine: str, method: str = "draft_model") -> Target:
    return Target("t", engine, method, 3, model="tiny", draft_model="tiny", url="http://127.0.0.1:9")


ENGINES: dict[str, Callable[[], Engine]] = {
    "vllm_draft_model_completion": lambda: VllmEngine(target("vllm")),
    "vllm_draft_model_chat": lambda: VllmEngine(target("vllm")),
    "sglang_standalone_generate": lambda: SglangEngine(target("sglang")),
    "sglang_standalone_chat": lambda: SglangEngine(target("sglang")),
    "llamacpp_draft_model": lambda: LlamaCppEngine(target("llamacpp")),
    "openai": lambda: cast(Engine, OpenAiEndpoint(target("openai", "unknown"))),
}
OPENAI = (
    '{"choices":[{"index":0,"delta":{"content":"日本"},"finish_reason":null}],"usage":null}',
    '{"choices":[{"index":0,"delta":{"content":"é\\n🙂"},"finish_reason":null}],"usage":null}',
    '{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}',
    '{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":4}}',
)


def payloads(name: str) -> list[bytes]:
    if name == "openai":
        return [payload.encode() for payload in OPENAI]
    return (RECORDED / f"{name}.txt").read_bytes().splitlines()


@dataclass(frozen=True)
class Framing:
    """How a server wraps the events of a stream."""

    line_end: bytes = b"\n"
    comments: bool = False
    framing: str = "chunked"
    """`chunked`, `length` or `close`."""
    events_per_chunk: int = 1
    extension: bytes = b""
    trailer: bytes = b""
    interim: bytes = b""

    def events(self, name: str) -> list[bytes]:
        end = self.line_end
        events = [b"data: " + payload + end + end for payload in payloads(name)]
        if self.comments:
            events = [b": ping" + end + event for event in events]
        return [*events, b"data: [DONE]" + end + end]

    def response(self, name: str) -> bytes:
        events = self.events(name)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        body = b"".join(events)
        if self.framing == "length":
            head += b"content-length: %d\r\n" % len(body)
        elif self.framing == "chunked":
            head += b"Transfer-Encoding: chunked\r\n"
            step = self.events_per_chunk
            chunks = [b"".join(events[first : first + step]) for first in range(0, len(events), step)]
            body = b"".join(b"%X%s\r\n%s\r\n" % (len(chunk), self.extension, chunk) for chunk in chunks)
            body += b"0\r\n" + self.trailer + b"\r\n"
        return self.interim + head + b"\r\n" + body


FRAMINGS = {
    "chunked": Framing(),
    "several-events-in-a-chunk": Framing(events_per_chunk=3),
    "crlf": Framing(line_end=b"\r\n"),
    "extensions-and-trailers": Framing(extension=b';name="a b"', trailer=b"X-Digest: 0\r\nX-Other: 1\r\n"),
    "comments": Framing(comments=True),
    "content-length": Framing(framing="length"),
    "until-close": Framing(framing="close"),
    "interim-responses": Framing(
        interim=b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    ),
}


@dataclass
class Received:
    """What a client made of reads."""

    recording: Recording
    """Each read with the number of bytes that were read by then for a stamp."""
    head: Head | None = None
    complete_at: int | None = None
    """How many bytes had been read when the end was found."""
    exceeded: bool = False

    @property
    def body(self) -> bytes:
        body = body_of(self.recording)
        assert body.fault is None
        return bytes(body.raw)


def receive(reads: Sequence[bytes]) -> Received:
    received = Received(Recording())
    reader, total = ResponseReader(received.recording), 0
    for data in reads:
        total += len(data)
        assert received.complete_at is None, "bytes after the end"
        if reader.feed(float(total), data):
            received.complete_at = total
    received.head, received.exceeded = reader.head, reader.exceeded
    return received


def cut(response: bytes, places: Sequence[int]) -> list[bytes]:
    edges = sorted({0, len(response), *(place for place in places if 0 < place < len(response))})
    return [response[start:end] for start, end in pairwise(edges)]


def record(name: str, recording: Recording) -> RequestRecord:
    return decode(ENGINES[name](), Exchange("q0", 0, 0, 0.0, 1e9, recording)).record


def check(name: str, framing: Framing, places: Sequence[int]) -> None:
    """Cut at `places`, the response gives the same as in one piece, and each token's stamp is that of the read that completed its event."""
    response = framing.response(name)
    whole, received = receive([response]), receive(cut(response, places))
    assert received.body == whole.body == b"".join(framing.events(name))
    assert received.complete_at == (None if framing.framing == "close" else len(response))
    assert not received.exceeded

    expected, found = record(name, whole.recording), record(name, received.recording)
    assert expected.error is found.error is None
    assert found.output_tokens == expected.output_tokens > 0
    assert (found.token_ids, found.counters) == (expected.token_ids, expected.counters)
    assert found.arrivals.total_tokens == expected.arrivals.total_tokens == expected.output_tokens

    edges = sorted({len(response), *(place for place in places if 0 < place < len(response))})
    stamps, position = [], 0
    for event in framing.events(name)[:-1]:
        # Complete with the first byte of its blank line, where one chunk holds one event.
        position = response.index(event, position) + len(event)
        complete_at = position - len(framing.line_end) + 1
        stamps.append(float(next(edge for edge in edges if edge >= complete_at)))
    tokens = decode_tokens(name)
    by_moment: dict[float, int] = {}
    for stamp, count in zip(stamps, tokens, strict=True):
        by_moment[stamp] = by_moment.get(stamp, 0) + count
    assert {a.received_s: a.tokens for a in found.arrivals} == {s: n for s, n in by_moment.items() if n}


def decode_tokens(name: str) -> tuple[int, ...]:
    return ENGINES[name]().read(payloads(name)).tokens_per_event


@pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS.keys())
@pytest.mark.parametrize("name", ENGINES)
def test_a_real_stream_with_one_byte_apart_at_every_place(name: str, framing: Framing) -> None:
    """Every place of the shortest streams, every thirteenth of the others: that one ends up everywhere too."""
    short = name == "openai" or (name == "vllm_draft_model_completion" and framing == FRAMINGS["chunked"])
    for place in range(0, len(framing.response(name)), 1 if short else 13):
        check(name, framing, [place, place + 1])


@given(
    name=st.sampled_from(sorted(ENGINES)),
    framing=st.builds(
        Framing,
        line_end=st.sampled_from([b"\n", b"\r\n"]),
        comments=st.booleans(),
        framing=st.sampled_from(["chunked", "chunked", "length", "close"]),
        events_per_chunk=st.integers(1, 4),
        extension=st.sampled_from([b"", b";a", b';a="1\\"2"']),
        trailer=st.sampled_from([b"", b"X: 1\r\n"]),
        interim=st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n"]),
    ),
    places=st.lists(st.integers(0, 6000), max_size=40),
)
def test_real_streams_cut_anywhere_give_the_same_record(
    name: str, framing: Framing, places: list[int]
) -> None:
    check(name, framing, places)


@pytest.mark.parametrize("name", ENGINES)
def test_a_real_stream_byte_by_byte(name: str) -> None:
    check(name, FRAMINGS["chunked"], range(len(FRAMINGS["chunked"].response(name))))


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=40) | st.sampled_from([b"0\r\n\r\n", b"\r\n0\r\n\r\n"])),
    places=st.lists(st.integers(0, 400), max_size=20),
)
def test_any_bytes_in_chunks_come_out_whole_and_end_where_they_end(
    chunks: list[bytes], places: list[int]
) -> None:
    """Also bytes that look like the end of a response."""
    response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    response += b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    received = receive(cut(response, places))
    assert received.body == b"".join(chunks)
    assert received.complete_at == len(response)


EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b"d\r\ndata: {...}\n\n\r\n"
WRONG = b"1" + EVENT[1:]


@pytest.mark.parametrize("ending", [[EVENT + b"0\r\n\r\n"], [EVENT, b"0\r\n\r\n"]], ids=["with it", "apart"])
@pytest.mark.parametrize("wrong", [WRONG, EVENT + WRONG, WRONG + EVENT], ids=["alone", "last", "first"])
def test_an_event_stream_is_parsed_after_the_fact(wrong: bytes, ending: list[bytes]) -> None:
    """What is wrong with a chunk is not found as it comes, and the end is found all the same."""
    reads = [EVENTS + EVENT, EVENT[:9], EVENT[9:], EVENT + EVENT, wrong, *ending]
    received = receive(reads)
    assert received.complete_at == sum(map(len, reads))
    assert "Expected LF after chunk data" in str(body_of(received.recording).fault)


@pytest.mark.parametrize("read", [WRONG[:-2], WRONG + b"0\r\nX: y\r\n\r\n"], ids=["cut", "trailer"])
def test_what_may_be_the_end_of_an_event_stream_is_parsed(read: bytes) -> None:
    with pytest.raises(Malformed, match="Expected LF after chunk data"):
        receive([EVENTS, EVENT, read])


def test_an_event_stream_that_only_looks_ended_is_at_fault() -> None:
    """Its chunk holds a blank line, a field named 0, and a blank line again, in CR LF."""
    event = b"data: x\n\n\r\n0\r\n\r\n: more\n\n"
    received = receive([EVENTS + b"%x\r\n" % len(event), event[:-8]])
    assert received.complete_at is not None
    assert str(body_of(received.recording).fault) == "it goes on after what looked like its end"


@pytest.mark.parametrize(
    "excess", [b"garbage", b"garbage\n", b"HTTP/1.1 408 Timeout\r\n\r\n"], ids=["garbage", "a line", "a head"]
)
def test_what_follows_an_event_stream_is_not_part_of_it(excess: bytes) -> None:
    received = receive([EVENTS, EVENT, EVENT + b"0\r\n\r\n" + excess])
    assert received.complete_at is not None
    assert received.exceeded
    assert received.body == b"data: {...}\n\n" * 2


@pytest.mark.parametrize(
    ("response", "body"),
    [
        (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", b"ok"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            b"ok",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0002\r\nok\r\n000\r\n\r\n", b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 500 Error\r\nContent-Length: 0\r\n\r\n", b""),
    ],
)
def test_other_ways_to_write_a_response(response: bytes, body: bytes) -> None:
    for place in range(len(response)):
        received = receive(cut(response, [place]))
        assert (received.body, received.complete_at) == (body, len(response))


@pytest.mark.parametrize(
    "excess", [b"HTTP/1.1 408 Timeout\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno", b"garbage"]
)
@pytest.mark.parametrize(
    "framing", [b"Content-Length: 2\r\n\r\nok", b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"]
)
def test_what_follows_a_response_is_not_part_of_it(framing: bytes, excess: bytes) -> None:
    received = receive([b"HTTP/1.1 200 OK\r\n" + framing + excess])
    assert received.complete_at is not None
    assert received.exceeded
    assert received.body == b"ok"


@pytest.mark.parametrize("upgrade", [b"", b"Connection: upgrade\r\nUpgrade: websocket\r\n"])
def test_a_switch_of_protocols_ends_the_response_and_the_use_of_its_connection(upgrade: bytes) -> None:
    received = receive([b"HTTP/1.1 101 Switching\r\n" + upgrade + b"\r\n"])
    assert received.head is not None
    assert (received.head.status, received.complete_at is not None, received.exceeded) == (101, True, True)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", r"Expected HTTP/.*\): b'SSH-2.0"),
        (b"HTTP/2 200\r\n\r\n", "Expected dot"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "Invalid response status"),
        (b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", "Invalid header token"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n", "Duplicate Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", "Invalid character in Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n", "Invalid character in Content-Length"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "unknown Transfer-Encoding: gzip, chunked",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            "Invalid character in chunk size",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n", "Invalid character in chunk size"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\nok\n", "Expected LF after chunk size"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
            "Expected LF after chunk data",
        ),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, "no end of the head within 65536 bytes"),
    ],
)
def test_what_is_not_http_is_refused(response: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=r"not HTTP/1.1 \(" + reason):
        receive([response])


@pytest.mark.parametrize(
    ("version", "header", "keeps_alive"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: close\r\n", False),
        (b"1.1", b"Connection: Upgrade, Close\r\n", False),
        (b"1.0", b"", False),
        (b"1.0", b"connection: Keep-Alive\r\n", True),
    ],
)
def test_whether_the_connection_stays_open(version: bytes, header: bytes, keeps_alive: bool) -> None:
    head = receive([b"HTTP/%s 200 OK\r\nContent-Length: 0\r\n%s\r\n" % (version, header)]).head
    assert head is not None
    assert head.keeps_alive is keeps_alive
