from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import pairwise
from statistics import median
from typing import Any

import pytest
import requests

from pytest_speedbench.engines.base import Generation, Message
from pytest_speedbench.engines.control import Control
from pytest_speedbench.engines.openai_wire import completion_call
from pytest_speedbench.engines.reference.engine import ReferenceEngine
from pytest_speedbench.errors import EngineError
from pytest_speedbench.load.conversation import Prepared, prepare
from pytest_speedbench.load.driver import run_round
from pytest_speedbench.load.plan import RoundPlan
from pytest_speedbench.selftest import server as server_module
from pytest_speedbench.selftest.server import Loopback, Sent, main, serving
from pytest_speedbench.settings.target import Sampling, Target
from tests.load.stub_engine import prompts

ENGINE = ReferenceEngine(Target(name="loopback", engine="reference", method="none", draft_length=0))


def prepared_for(server: Loopback, count: int, output_length: int) -> Prepared:
    with closing(Control(server.url)) as control:
        return prepare(ENGINE, control, prompts(count), Sampling.exactly(output_length))


def stream(server: Loopback, generation: Generation, **more: Any) -> list[bytes]:
    """Payloads of one response."""
    call = completion_call(generation, "some-model", more)
    answer = requests.post(server.url + call.path, data=call.body, headers=dict(call.headers), timeout=20)
    assert answer.status_code == 200
    assert answer.headers["transfer-encoding"] == "chunked"
    events = answer.content.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    return [event.removeprefix(b"data: ") for event in events[:-2]]


@pytest.fixture(scope="module")
def server() -> Iterator[Loopback]:
    """Without a rate: these tests ask what is sent, not when."""
    with serving(None) as running:
        yield running


class TestStream:
    def test_brings_as_many_tokens_as_were_asked_for_and_usage_at_the_end(self, server: Loopback) -> None:
        events = stream(server, Generation(Sampling.exactly(37), token_ids=(5, 6, 7)))
        reply = ENGINE.read(events)
        assert reply.tokens_per_event == (*[1] * 37, 0)
        assert (reply.output_tokens, reply.prompt_tokens, reply.finish_reason) == (37, 3, "length")

    def test_only_its_last_token_has_a_finish_reason(self, server: Loopback) -> None:
        events = [
            json.loads(event) for event in stream(server, Generation(Sampling.exactly(3), token_ids=(5,)))
        ]
        assert [event["choices"][0]["finish_reason"] for event in events[:3]] == [None, None, "length"]

    def test_of_one_token(self, server: Loopback) -> None:
        assert ENGINE.read(stream(server, Generation(Sampling.exactly(1), token_ids=(5,)))).output_tokens == 1

    def test_of_a_chat_opens_with_the_role(self, server: Loopback) -> None:
        events = stream(server, Generation(Sampling.exactly(4), messages=(Message("user", "grüß"),)))
        assert json.loads(events[0])["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        reply = ENGINE.read(events)
        assert reply.tokens_per_event == (0, 1, 1, 1, 1, 0)
        assert reply.prompt_tokens == len("grüß".encode())

    def test_tells_usage_in_every_event_if_asked_to(self, server: Loopback) -> None:
        options = {"include_usage": True, "continuous_usage_stats": True}
        events = stream(server, Generation(Sampling.exactly(3), token_ids=(5, 6)), stream_options=options)
        assert [json.loads(event)["usage"]["completion_tokens"] for event in events] == [1, 2, 3, 3]
        assert [json.loads(event)["usage"]["total_tokens"] for event in events] == [3, 4, 5, 5]

    def test_tells_no_usage_unless_asked_to(self, server: Loopback) -> None:
        events = stream(server, Generation(Sampling.exactly(3), token_ids=(5,)), stream_options=None)
        assert not any("usage" in json.loads(event) for event in events)

    def test_a_model_name_may_hold_what_python_formats(self, server: Loopback) -> None:
        events = stream(server, Generation(Sampling.exactly(2), token_ids=(5,)), model="100 %s")
        assert {json.loads(event)["model"] for event in events} == {"100 %s"}

    def test_its_events_carry_the_moments_that_the_server_tells(self, server: Loopback) -> None:
        events = [
            json.loads(event) for event in stream(server, Generation(Sampling.exactly(5), token_ids=(5,)))
        ]
        (number,) = {token for event in events[:5] for token in event["choices"][0]["token_ids"]}
        assert [event["sent_s"] for event in events[:5]] == pytest.approx(
            server.sent().stamps_s[number], abs=1e-6
        )


class TestConnection:
    def test_serves_one_request_after_the_other_also_where_they_come_at_once(self, server: Loopback) -> None:
        call = completion_call(Generation(Sampling.exactly(9), token_ids=(5,)), "m")
        one = request_bytes(call.path, call.body)
        with connected(server) as wire:
            wire.sendall(one + one)
            assert read_until(wire, b"0\r\n\r\n", 2).count(b"data: [DONE]") == 2

    def test_takes_a_request_in_pieces(self, server: Loopback) -> None:
        call = completion_call(Generation(Sampling.exactly(1), token_ids=(5,)), "m")
        with connected(server) as wire:
            for byte in request_bytes(call.path, call.body):
                wire.sendall(bytes([byte]))
            assert b"[DONE]" in read_until(wire, b"0\r\n\r\n", 1)

    def test_closes_if_the_client_wants_it(self, server: Loopback) -> None:
        call = completion_call(Generation(Sampling.exactly(2), token_ids=(5,)), "m")
        with connected(server) as wire:
            wire.sendall(request_bytes(call.path, call.body, "Connection: close\r\n"))
            received = b""
            while part := wire.recv(65536):
                received += part
        assert received.endswith(b"0\r\n\r\n")

    def test_a_client_that_goes_does_not_disturb_the_others(self, server: Loopback) -> None:
        call = completion_call(Generation(Sampling.exactly(1_000_000), token_ids=(5,)), "m")
        with connected(server) as wire:
            wire.sendall(request_bytes(call.path, call.body))
            wire.recv(100)
        assert ENGINE.read(stream(server, Generation(Sampling.exactly(7), token_ids=(5,)))).output_tokens == 7


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/v1/completions", {"prompt": "x", "max_tokens": 3}, 400, "`stream` must be true"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 0.5, "stream": True}, 400, "`max_tokens`"),
        ("/v1/completions", [], 400, "no JSON object"),
        ("/generate", {"text": "x"}, 404, "POST /generate is not served"),
    ],
)
def test_what_it_does_not_serve_it_refuses(
    server: Loopback, path: str, body: Any, status: int, told: str
) -> None:
    answer = requests.post(server.url + path, json=body, timeout=20)
    assert answer.status_code == status
    assert told in answer.json()["error"]["message"]


def test_refuses_a_body_of_unknown_length_and_what_is_no_http(server: Loopback) -> None:
    for sent, status in (
        (b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"hi\r\n\r\n", 400),
    ):
        with connected(server) as wire:
            wire.sendall(sent)
            received = b""
            while part := wire.recv(65536):  # to the end: where a next request would begin is not known
                received += part
        assert received.startswith(b"HTTP/1.1 %d " % status)


def test_answers_what_clients_ask_first(server: Loopback) -> None:
    with closing(Control(server.url)) as control:
        assert control.answers("/health")
        assert control.get_json("/v1/models")["data"][0]["id"] == "loopback"
        assert control.post_json("/tokenize", {"prompt": "aß"})["tokens"] == list("aß".encode())


class TestRate:
    def test_no_event_is_early_and_one_that_was_late_makes_no_other_late(self) -> None:
        with serving(50.0) as server:
            run_round(ENGINE, server.url, prepared_for(server, 4, 40), RoundPlan(4))
            sent = server.sent()
        assert sent.chunks == 4 * 40
        for number, stamps in sent.stamps_s.items():
            late_s = lateness_s(stamps, sent.asked_s[number], 0.02)
            assert min(late_s) > -0.02  # a stream may join a wheel that turns already
            assert min(late_s[20:]) - min(late_s[:20]) < 0.02

    def test_streams_send_together_or_spread_over_the_interval(self) -> None:
        def distances(phases: int) -> list[float]:
            with serving(5.0, phases=phases) as server:
                run_round(ENGINE, server.url, prepared_for(server, 2, 6), RoundPlan(2))
                first, second = server.sent().stamps_s.values()
            return [min(abs(one - other) for other in second) for one in first]

        assert median(distances(1)) < 0.05 < median(distances(2))

    def test_stamps_never_go_back(self) -> None:
        with serving(None) as server:
            run_round(ENGINE, server.url, prepared_for(server, 3, 50), RoundPlan(3))
            stamps_of = server.sent().stamps_s
        assert all(before <= after for stamps in stamps_of.values() for before, after in pairwise(stamps))

    def test_a_client_that_reads_nothing_holds_nobody_up_and_keeps_its_own_moments(self) -> None:
        call = completion_call(Generation(Sampling.exactly(60), token_ids=(5,)), "m" * 400_000)
        with serving(50.0) as server, connected(server) as idle:
            idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            idle.sendall(request_bytes(call.path, call.body))
            run_round(ENGINE, server.url, prepared_for(server, 1, 80), RoundPlan(1))
            sent = server.sent()
        assert sent.held_up > 0
        late_s = lateness_s(sent.stamps_s[0], sent.asked_s[0], 0.02)
        assert len(late_s) == 60
        assert min(late_s[30:]) - min(late_s[:30]) < 0.02


class TestProcesses:
    def test_several_share_a_port_and_tell_one_truth(self) -> None:
        with serving(None, processes=2) as server:
            record = run_round(ENGINE, server.url, prepared_for(server, 64, 5), RoundPlan(64))
            sent = server.sent()
            assert server.requests() == 64
        assert record.failed == 0
        assert sent.chunks == 64 * 5
        assert len(sent.stamps_s) == 64

    def test_a_proxy_of_the_environment_is_not_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        with serving(None) as server:
            assert server.requests() == 0

    def test_a_port_in_use_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with serving(None) as server:
            port = server.url.rpartition(":")[2]
            monkeypatch.setattr(
                server_module.subprocess,  # type: ignore[attr-defined]
                "Popen",
                lambda command, **how: POPEN([*command, "--port", port], **how),
            )
            with (
                pytest.raises(EngineError, match=r"did not start: .*cannot serve port \d+: .*in use"),
                serving(None),
            ):
                pass

    @pytest.mark.parametrize("options", [["--rate", "0"], ["--rate", "nan"], ["--phases", "0"]])
    def test_refuses_what_is_no_rate(self, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(options)
        assert f"{options[0]} {options[1]}: allowed is" in capsys.readouterr().err

    def test_ends_on_sigterm_with_status_0(self) -> None:
        command = [sys.executable, "-m", "pytest_speedbench.selftest.server"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0

    def test_ends_with_whoever_started_it_if_tied(self) -> None:
        command = [sys.executable, "-m", "pytest_speedbench.selftest.server", "--tied"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdout.readline()
            assert process.poll() is None
            process.stdin.close()  # as the system does for a process that was killed
            assert process.wait(timeout=20) == 0


POPEN = subprocess.Popen


class TestSent:
    def test_all_streams_send_once_the_last_has_begun(self) -> None:
        assert (
            Sent({0: [10.0, 12.0], 1: [11.5, 12.5]}, asked_s={0: 9.0, 1: 9.5}, cpu_s=0.0, held_up=0).full_s
            == 11.5
        )

    def test_time_is_counted_from_the_first_request_to_the_last_event(self) -> None:
        assert Sent({0: [10.0, 12.0], 1: [11.5, 12.5]}, {0: 9.0, 1: 9.5}, cpu_s=0.0, held_up=0).seconds == 3.5

    def test_nothing_sent_takes_no_time(self) -> None:
        sent = Sent({}, {}, cpu_s=0.0, held_up=0)
        assert (sent.chunks, sent.seconds) == (0, 0.0)


def lateness_s(stamps_s: Sequence[float], asked_s: float, interval_s: float) -> list[float]:
    """How much later each event came than one interval after the other since the request."""
    return [stamp_s - asked_s - number * interval_s for number, stamp_s in enumerate(stamps_s, start=1)]


@contextmanager
def connected(server: Loopback) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=20) as wire:
        yield wire


def request_bytes(path: str, body: bytes, headers: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def read_until(wire: socket.socket, end: bytes, times: int) -> bytes:
    received = b""
    while received.count(end) < times:
        part = wire.recv(65536)
        assert part, received
        received += part
    return received
