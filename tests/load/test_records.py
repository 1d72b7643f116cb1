from __future__ import annotations

import pickle
import sys

from pytest_speedbench.load.records import Arrival, Arrivals, RequestRecord


def test_arrivals_are_a_sequence() -> None:
    arrivals = Arrivals.of([(1.0, 2), (1.5, 3), (2.0, 1)])
    assert list(arrivals) == [Arrival(1.0, 2), Arrival(1.5, 3), Arrival(2.0, 1)]
    assert (arrivals[0], arrivals[-1], len(arrivals)) == (Arrival(1.0, 2), Arrival(2.0, 1), 3)
    assert arrivals[1:] == Arrivals.of([(1.5, 3), (2.0, 1)])
    assert Arrival(1.5, 3) in arrivals
    assert arrivals.total_tokens == 6
    assert not Arrivals()


def test_a_record_of_4096_arrivals_takes_12_bytes_for_each() -> None:
    arrivals = Arrivals.of((float(number), 1) for number in range(4096))
    columns = arrivals.received_s, arrivals.tokens
    assert sum(sys.getsizeof(column) for column in columns) < 4096 * 12 * 1.2
    assert len(pickle.dumps(arrivals)) < 4096 * 12 + 1000


def test_a_record_that_was_pickled_is_the_same() -> None:
    record = RequestRecord("q", 0, 0, 1.0, 2.0, Arrivals.of([(1.5, 3)]), 3)
    assert pickle.loads(pickle.dumps(record)) == record


def test_records_without_arrivals_share_nothing() -> None:
    one, other = (RequestRecord("q", 0, 0, 1.0, 2.0) for _ in range(2))
    one.arrivals.received_s.append(1.0)
    assert len(other.arrivals) == 0
