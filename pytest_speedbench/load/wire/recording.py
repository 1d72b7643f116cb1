"""A response as it came off the wire, kept until it is taken apart: each read's bytes with their stamp."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from itertools import chain

BESIDE_BYTES = 56
"""What a read takes in memory beside its own bytes: a `bytes` object, and its place in a list."""
_Block = tuple[bytes, Sequence[int]]
"""Reads that were packed, and the bytes of each."""


class Recording:
    """The reads of one response, head and framing included, and the moment of each.

    The object that a read brought is kept as it is: to copy it into a buffer of its stream costs more than to read it,
    since 512 such buffers are in no cache and are moved whenever they grow. What is too much to keep is packed in a
    thread, block by block: the events of a stream are much alike, and shrink to an eighth or less.
    """

    __slots__ = ("_blocks", "_counted", "_counted_bytes", "_packed", "reads", "stamps_s")

    def __init__(self) -> None:
        self.stamps_s: array[float] = array("d")
        """Monotonic clock of every read."""
        self.reads: list[bytes] = []
        """Those that are not packed."""
        self._blocks: list[Future[_Block]] = []
        self._packed = 0
        self._counted = self._counted_bytes = 0

    def take(self, received_s: float, data: bytes) -> None:
        """Put down a read.

        Args:
            received_s: monotonic clock when it arrived.
            data: not empty.
        """
        self.reads.append(data)
        self.stamps_s.append(received_s)

    @property
    def unpacked_bytes(self) -> int:
        """Memory that reads take which are not packed; only those since the last call are counted."""
        new = self.reads[self._counted :]
        self._counted_bytes += sum(map(len, new)) + BESIDE_BYTES * len(new)
        self._counted = len(self.reads)
        return self._counted_bytes

    def pack(self, threads: Executor) -> None:
        """Shrink what there is so far; takes the thread 2 us a chunk."""
        self._packed += len(self.reads)
        self._blocks.append(threads.submit(_pack, self.reads))
        self.reads = []
        self._counted = self._counted_bytes = 0

    def reads_from(self, first: int) -> Iterator[bytes | memoryview]:
        """The reads in order.

        Args:
            first: number of the first one, counted from 0.
        """
        if first >= self._packed:
            return iter(self.reads[first - self._packed :])
        all_reads: Iterator[bytes | memoryview] = chain(
            chain.from_iterable(map(_unpack, self._blocks)), self.reads
        )
        for _ in range(first):
            next(all_reads)
        return all_reads


def _pack(reads: list[bytes]) -> _Block:
    return zlib.compress(b"".join(reads), 1), array("I", map(len, reads))


def _unpack(block: Future[_Block]) -> Iterator[memoryview]:
    packed, sizes = block.result()
    data, position = memoryview(zlib.decompress(packed)), 0
    for size in sizes:
        yield data[position : position + size]
        position += size
