from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_speedbench.load import round as load_round
from pytest_speedbench.load.wire.recording import BESIDE_BYTES, Recording
from tests.load.stub_server import Exchanged, StubServer, event
from tests.load.test_driver import drive


@settings(deadline=None)  # a thread may wait for a core
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=50), st.booleans(), st.booleans()), max_size=20))
def test_what_was_packed_on_the_way_is_whole_again(reads: list[tuple[bytes, bool, bool]]) -> None:
    recording, unpacked = Recording(), 0
    with ThreadPoolExecutor(1) as threads:
        for number, (data, counts, packs) in enumerate(reads):
            recording.take(float(number), data)
            unpacked += len(data) + BESIDE_BYTES
            if counts:
                assert recording.unpacked_bytes == unpacked
            if packs:
                recording.pack(threads)
                unpacked = 0
        for first in range(len(reads) + 1):
            assert list(map(bytes, recording.reads_from(first))) == [data for data, *_ in reads[first:]]
    assert recording.unpacked_bytes == unpacked
    assert list(recording.stamps_s) == [float(number) for number in range(len(reads))]


def test_streams_that_are_too_much_to_keep_are_packed_while_they_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server goes on once the client has packed what it has so far, which takes one look of its watch."""
    monkeypatch.setattr(load_round, "UNPACKED_BYTES", 1000)
    packed: list[Recording] = []
    pack = Recording.pack

    def note(recording: Recording, threads: ThreadPoolExecutor) -> None:
        packed.append(recording)
        pack(recording, threads)

    monkeypatch.setattr(Recording, "pack", note)

    async def long(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
        response = await exchanged.start()
        looks = 0
        while looks < 3:
            before = len(packed)
            await response.write(event(text="x" * 2000, tokens=1))
            while len(packed) == before:
                await server.until(lambda: True)
                await response.write(b": wait\n\n")
            looks += 1
        await response.write(event(usage=3, finish="length"))
        return response

    with StubServer(long) as server:
        (request,) = drive(server, 1, 1).requests
    assert request.error is None
    assert request.output_tokens == request.arrivals.total_tokens == 3
    assert len(packed) >= 3
