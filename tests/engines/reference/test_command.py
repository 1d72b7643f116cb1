from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import requests

COMMAND = [sys.executable, "-m", "pytest_speedbench.engines.reference"]
ASKED = {"prompt": "Tell me of the sea", "max_tokens": 100_000, "stream": True, "ignore_eos": True}


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server on a free port, and its URL."""
    server = subprocess.Popen(
        [*COMMAND, "--port", "0", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        match = re.fullmatch(r"reference engine: serving (http://127\.0\.0\.1:\d+)\n", line)
        assert match, line
        yield server, match[1]
    finally:
        server.kill()
        server.communicate()


def refused(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0_even_in_mid_stream(name: signal.Signals) -> None:
    with running() as (server, url):
        with requests.post(f"{url}/v1/completions", json=ASKED, stream=True, timeout=10) as response:
            lines = response.iter_lines()
            next(lines)
            server.send_signal(name)
            _, errors = server.communicate(timeout=10)
        assert (server.returncode, errors) == (0, "")


def test_a_port_in_use_is_one_line_and_status_1() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = refused("--port", str(port))
    assert ended.returncode == 1
    assert ended.stderr == f"reference engine: cannot serve 127.0.0.1:{port}: address already in use\n"


def test_a_client_that_goes_away_leaves_the_batch() -> None:
    gauge = 'vllm:num_requests_running{engine="0",model_name="reference"}'
    with running() as (_, url):
        with requests.post(f"{url}/v1/completions", json=ASKED, stream=True, timeout=10) as response:
            lines = response.iter_lines()  # kept: it closes the connection when it is dropped
            next(lines)
            assert f"{gauge} 1.0" in requests.get(f"{url}/metrics", timeout=10).text
        give_up_s = time.monotonic() + 20
        while f"{gauge} 0.0" not in requests.get(f"{url}/metrics", timeout=10).text:
            assert time.monotonic() < give_up_s


def test_fault_crash_ends_the_process_in_mid_stream() -> None:
    with running("--fault", "crash") as (server, url):
        response = requests.post(f"{url}/v1/completions", json=ASKED, stream=True, timeout=10)
        with response, pytest.raises(requests.RequestException):
            list(response.iter_lines())
        _, errors = server.communicate(timeout=10)
        assert server.returncode == 70
        assert errors == "reference engine: crashing, as --fault crash asked\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "eagle"], "invalid choice: 'eagle'"),
        (["--draft-quality", "0"], "0 is not in (0, 1]"),
        (["--draft-quality", "1.1"], "1.1 is not in (0, 1]"),
        (["--step-slowdown", "0"], "0 is not above 0"),
        (["--step-slowdown", "nan"], "nan is not above 0"),
        (["--draft-length", "0"], "0 is not between 1 and 64"),
        (["--draft-length", "three"], "invalid integer value: 'three'"),
        (["--fault", "meteor"], "invalid choice: 'meteor'"),
        (["--fault-after", "-1"], "-1 is not between 0 and"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    ],
)
def test_a_bad_argument_ends_it_at_once(arguments: list[str], message: str) -> None:
    ended = refused(*arguments)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_step_slowdown_lengthens_the_modelled_steps_and_leaves_acceptance() -> None:
    asked = ASKED | {"max_tokens": 32, "stream": False, "temperature": 0.0}
    metrics, latencies = [], []
    for factor in ("1", "3"):
        with running("--step-slowdown", factor) as (_, url):
            metrics.append(requests.post(f"{url}/v1/completions", json=asked, timeout=10).json()["metrics"])
            exposition = requests.get(f"{url}/metrics", timeout=10).text
            latencies.append(_value(exposition, "_sum") / _value(exposition, "_count"))
    assert metrics[0] == metrics[1]
    assert latencies[1] == pytest.approx(3 * latencies[0])


def test_output_is_no_faster_than_modelled() -> None:
    asked = ASKED | {"max_tokens": 64, "stream": False, "temperature": 0.0}
    with running() as (_, url):
        began_s = time.monotonic()
        requests.post(f"{url}/v1/completions", json=asked, timeout=10).raise_for_status()
        took_s = time.monotonic() - began_s
        modelled_s = _value(requests.get(f"{url}/metrics", timeout=10).text, "_sum")
    assert took_s >= modelled_s > 0.0


def _value(exposition: str, part: str) -> float:
    match = re.search(rf"^vllm:inter_token_latency_seconds{part}\{{.*\}} (\S+)$", exposition, re.MULTILINE)
    assert match
    return float(match[1])
