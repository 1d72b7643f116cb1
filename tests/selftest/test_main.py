from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pytest_speedbench.errors import EngineError
from pytest_speedbench.load.records import Arrivals, RequestRecord, RoundRecord
from pytest_speedbench.selftest import __main__
from pytest_speedbench.selftest.__main__ import Run, Step, conclusion, drive, lags_s, main, summarise
from pytest_speedbench.selftest.server import Sent

HELD = Step(
    streams=512,
    offered_per_s=25_600.0,
    sent_per_s=25_600.0,
    received_per_s=25_600.0,
    cpu_s_per_chunk=10e-6,
    busy=0.25,
    waiting=0.05,
    lag_p99_s=0.002,
)


class TestVerdict:
    @pytest.mark.parametrize(
        ("step", "verdict"),
        [
            (HELD, "held"),
            (replace(HELD, busy=0.95), "client busy"),
            (replace(HELD, busy=0.5, waiting=0.45), "no free core"),
            (replace(HELD, lag_p99_s=0.3), "client late"),
            (replace(HELD, sent_per_s=20_000.0, received_per_s=20_000.0), "server slow"),
            (replace(HELD, sent_per_s=20_000.0, busy=0.95), "client busy"),
        ],
    )
    def test_says_who_gave_in(self, step: Step, verdict: str) -> None:
        assert step.verdict == verdict

    @pytest.mark.parametrize(
        ("done", "told"),
        [
            ([HELD], "The client holds 25,600 chunks/s from 512 streams, with 75% of its core to spare."),
            (
                [HELD, replace(HELD, offered_per_s=51_200.0, busy=0.97)],
                "The client holds 25,600 chunks/s from 512 streams; for more, use faster cores.",
            ),
            (
                [replace(HELD, lag_p99_s=0.3)],
                "The client did not hold 25,600 chunks/s from 512 streams; something else uses the cores",
            ),
            (
                [HELD, replace(HELD, offered_per_s=51_200.0)],
                "The client holds 25,600 chunks/s from 512 streams; more could not be offered",
            ),
        ],
    )
    def test_the_conclusion_names_the_rate_that_was_held_and_the_cure(
        self, done: list[Step], told: str
    ) -> None:
        assert conclusion(done).startswith(told)


def test_a_step_is_what_server_and_client_tell_of_the_same_chunks() -> None:
    sent = Sent(
        {0: [10.0, 10.1, 10.2], 1: [10.05, 10.15, 10.25]}, asked_s={0: 9.9, 1: 9.9}, cpu_s=0.0, held_up=0
    )
    requests = tuple(
        RequestRecord(
            f"q{number}",
            0,
            0,
            sent_s=9.9,
            ended_s=10.4,
            arrivals=Arrivals.of([(stamps[0] + 0.01, 1), (stamps[2] + 0.03, 2)]),
            output_tokens=3,
            token_ids=(number,) * 3,
        )
        for number, stamps in sent.stamps_s.items()
    )
    run = Run(RoundRecord(2, requests, "engine", client_busy=0.4, client_waiting=0.1), sent, cpu_s=0.011)
    set_up = Run(run.record, Sent({0: [1.0]}, asked_s={0: 0.9}, cpu_s=0.0, held_up=0), cpu_s=0.001)
    step = summarise(20.0, run, set_up)
    assert (step.streams, step.offered_per_s, step.busy, step.waiting) == (2, 20.0, 0.4, 0.1)
    assert step.sent_per_s == pytest.approx(2 * 2 / 0.2)
    assert step.received_per_s == pytest.approx(2 * 2 / 0.22)
    assert step.cpu_s_per_chunk == pytest.approx(0.010 / 5)
    assert 0.03 < step.lag_p99_s <= 0.13 + 1e-9


class TestLag:
    def test_is_known_token_by_token_also_where_events_came_in_one_read(self) -> None:
        sent = Sent({7: [10.0, 11.0, 12.0]}, asked_s={7: 9.0}, cpu_s=0.0, held_up=0)
        arrivals = Arrivals.of([(10.5, 1), (12.25, 2)])
        request = RequestRecord("q", 0, 0, 9.0, 12.3, arrivals, 3, token_ids=(7, 7, 7))
        assert lags_s(sent, [request]) == [0.5, 1.25, 0.25]
        assert lags_s(sent, [request], since_s=11.0) == [1.25, 0.25]

    def test_of_what_failed_is_not_told(self) -> None:
        sent = Sent({7: [10.0]}, asked_s={7: 9.0}, cpu_s=0.0, held_up=0)
        assert lags_s(sent, [RequestRecord("q", 0, 0, 9.0, 9.5, error="broke off")]) == []


def test_a_round_against_the_server_accounts_for_every_chunk() -> None:
    run = drive(streams=4, rate=200.0, chunks=10)
    assert run.sent.chunks == sum(request.output_tokens for request in run.record.requests) == 40
    assert run.cpu_s > 0
    lags = lags_s(run.sent, run.record.requests)
    assert len(lags) == 40
    assert min(lags) >= 0


class TestCommand:
    @pytest.fixture(autouse=True)
    def no_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(__main__, "steps", lambda streams, seconds: iter([HELD]))

    def test_prints_a_table_of_80_columns_and_a_conclusion(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        header, row = lines[2:4]
        assert header.split() == [
            "streams",
            "offered/s",
            "received/s",
            "CPU",
            "us/chunk",
            "busy",
            "lag",
            "p99",
            "verdict",
        ]
        assert row.split() == ["512", "25,600", "25,600", "10.0", "25%", "2.0", "ms", "held"]
        assert "The client holds 25,600 chunks/s" in lines[5]

    def test_fits_80_columns_where_all_is_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        large = Step(4096, 819_200.0, 1e6, 819_200.0, 9_999.9e-6, 1.0, 1.0, 9.9999)
        assert len(large.line()) <= 80

    def test_fails_where_no_rate_was_held(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(__main__, "steps", lambda streams, seconds: iter([replace(HELD, busy=1.0)]))
        assert main([]) == 1

    def test_a_fault_is_one_line(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def faulty(streams: int, seconds: float) -> Iterator[Step]:
            raise EngineError("the loopback server did not start: no room")
            yield HELD

        monkeypatch.setattr(__main__, "steps", faulty)
        assert main([]) == 1
        told = capsys.readouterr().err.strip()
        assert told == "selftest: the loopback server did not start: no room"

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["--streams", "0"], "--streams 0: allowed are 1 to"),
            (["--seconds", "0.5"], "--seconds 0.5: allowed are 1 to"),
        ],
    )
    def test_refuses_what_cannot_be(
        self, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            main(arguments)
        assert told in capsys.readouterr().err

    def test_says_how_many_files_may_be_open(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda what: (256, 4096))
        with pytest.raises(SystemExit):
            main(["--streams", "512"])
        assert "this shell allows 256 open files; ulimit -n 576" in capsys.readouterr().err


def test_steps_go_on_until_one_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    driven: list[tuple[int, float]] = []

    def pretended(streams: int, rate: float, chunks: int) -> Run:
        driven.append((streams, rate))
        return Run(RoundRecord(streams, (), "engine"), Sent({}, {}, 0.0, 0), 0.0)

    verdicts = iter([HELD, HELD, replace(HELD, busy=1.0), HELD])
    monkeypatch.setattr(__main__, "drive", pretended)
    monkeypatch.setattr(__main__, "summarise", lambda offered, run, set_up: next(verdicts))
    done = list(__main__.steps(64, 1.0))
    assert [step.verdict for step in done] == ["held", "held", "client busy"]
    assert [streams for streams, _ in driven] == [8, 64, 64, 64, 64]  # imports, connections, three rates
