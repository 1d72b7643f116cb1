"""What every engine must do, whichever it is: one suite, and an engine's tests are a subclass with two targets.

    class TestMine(Conformance):
        @classmethod
        def target(cls) -> Target:
            return Target(name="mine", engine="mine", method="draft_model", draft_length=3, model=...)

        @classmethod
        def broken(cls, folder: Path) -> Target:
            return replace(cls.target(), model=...)  # passes check(), and cannot be loaded

Four servers are started: one is measured and then stopped, three die in different ways. What happened to the first
is kept and looked at by many tests, so that none of them depends on another.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from pytest_speedbench import engines
from pytest_speedbench.cells import Cell
from pytest_speedbench.data import load
from pytest_speedbench.engines.base import Counters, Generation, Hardware
from pytest_speedbench.engines.control import Control
from pytest_speedbench.engines.launch.process import EngineProcess, describe_exit, start
from pytest_speedbench.errors import EngineError, SettingsError
from pytest_speedbench.load.conversation import Prepared, prepare
from pytest_speedbench.load.plan import RoundPlan
from pytest_speedbench.load.records import RequestRecord, RoundRecord
from pytest_speedbench.load.rounds import record_round
from pytest_speedbench.load.wire.connection import Connection, Response
from pytest_speedbench.metrics.acceptance import histogram, inconsistency
from pytest_speedbench.metrics.measurement import Measurement
from pytest_speedbench.settings.target import Sampling, Target
from pytest_speedbench.speed_bench import QUALITATIVE
from tests.engines.command_line import options_of
from tests.engines.launch.watch import Watch
from tests.metrics.records import build

if TYPE_CHECKING:
    import requests

    from pytest_speedbench.data import Prompt
    from pytest_speedbench.engines.base import Engine

GONE_S = 15.0
"""How long anything may outlive a death, in seconds."""
GRACE_S = 60.0
"""How long an engine may take to end by itself when asked to."""
FOREVER_S = 180.0
"""Limit of what takes seconds."""

_AT_WORK = 8
"""Requests that a pytest has in flight when it is killed."""
_WITHOUT_END = 1000
"""Conversations of a round that is not to end by itself, however slow its observer is."""


@dataclass(frozen=True)
class Life:
    """What came of a server that was launched, measured and stopped."""

    version: str
    hardware: Hardware
    prompts: tuple[Prompt, ...]
    generations: tuple[Generation, ...]
    rounds: tuple[RoundRecord, ...]
    measurements: tuple[Measurement, ...]
    """One for each round."""
    ready_after_reset: bool
    processes: int
    """How many were seen."""
    left: list[str]
    """What was still there when `stop` had returned."""


class Conformance:
    """Subclass it, and give `target` and `broken`."""

    output_length = 48
    batch_size = 2
    long_output = 3000
    """Tokens that take long enough for a server to be killed over them."""

    @classmethod
    def target(cls) -> Target:
        """A good one, that drafts."""
        raise NotImplementedError

    @classmethod
    def broken(cls, folder: Path) -> Target:
        """One that passes `check` and whose server cannot start; `folder` is empty, for a model to be spoilt in."""
        raise NotImplementedError

    @pytest.fixture
    def logs(self, tmp_path: Path) -> Path:
        return tmp_path / "logs"

    @pytest.fixture(scope="class")
    @classmethod
    def life(cls, tmp_path_factory: pytest.TempPathFactory) -> Life:
        target = cls.target()
        engine = checked(target)
        cell = Cell(QUALITATIVE, "coding", cls.batch_size)
        with Watch() as watch:
            with start(engine, target, tmp_path_factory.mktemp(target.engine) / "logs") as server:
                control = Control(server.url)
                version, hardware = engine.version(control), engine.hardware(control)
                prepared = prepared_for(engine, control, Sampling.exactly(cls.output_length))
                plan = RoundPlan(cls.batch_size)
                rounds = tuple(record_round(engine, control, prepared, plan) for _ in range(2))
                engine.reset(control)
                ready_after_reset = control.answers(engine.ready_path)
                control.close()
            return Life(
                version=version,
                hardware=hardware,
                prompts=prepared.prompts,
                generations=prepared.generations,
                rounds=rounds,
                measurements=tuple(build(cell, target.method, [each], prepared.prompts) for each in rounds),
                ready_after_reset=ready_after_reset,
                processes=len(watch.seen),
                left=watch.left(0.0),
            )

    def test_refuses_a_model_that_is_not_there_in_one_line(self, tmp_path: Path) -> None:
        missing = str(tmp_path / "no-such-model")
        with pytest.raises(SettingsError) as refused:
            checked(replace(self.target(), model=missing))
        assert f"--speedbench-model={missing}" in str(refused.value)
        assert "\n" not in str(refused.value)

    def test_crash_at_start_is_told_and_leaves_nothing(self, tmp_path: Path, logs: Path) -> None:
        broken = self.broken(tmp_path)
        engine = checked(broken)
        with Watch() as watch:
            with pytest.raises(EngineError, match=r"before it was ready\n  command: .*\n  log: ") as told:
                start(engine, broken, logs).stop()
            # it may have died before anyone looked, so that it was never seen; what it wrote shows that it ran
            assert watch.left(0.0) == []
        assert str(told.value).startswith(f"{broken.engine} ")
        assert "last lines of the log" in str(told.value)

    def test_says_what_it_is(self, life: Life) -> None:
        assert life.version
        assert life.hardware.accelerator
        assert life.hardware.count >= 1

    def test_generates_from_token_ids(self, life: Life) -> None:
        sent = {
            prompt.question_id: len(generation.token_ids or ())
            for prompt, generation in zip(life.prompts, life.generations, strict=True)
        }
        for round_ in life.rounds:
            assert [request.error for request in round_.requests] == [None] * len(life.prompts)
            assert round_.tokenization == "engine"
            assert {request.question_id: request.prompt_tokens for request in round_.requests} == sent
            for request in round_.requests:
                assert request.output_tokens == self.output_length
                assert request.finish_reason == "length"
                assert request.token_ids is None or len(request.token_ids) == self.output_length

    def test_streams(self, life: Life) -> None:
        """That a stream comes in pieces is seen where a server is killed in the middle of one: short ones need not.

        A server that is behind, as on a busy machine, sends together what has gathered.
        """
        for request in every_request(life):
            assert sum(arrival.tokens for arrival in request.arrivals) == request.output_tokens
            moments = [arrival.received_s for arrival in request.arrivals]
            assert [request.sent_s, *moments, request.ended_s] == sorted(
                [request.sent_s, *moments, request.ended_s]
            )
            assert moments

    def test_counts_every_request(self, life: Life) -> None:
        target = self.target()
        for request in every_request(life):
            assert request.counters is not None
            assert inconsistency(target.method, request.output_tokens, request.counters) is None
            agrees_with_itself(request.counters, target.draft_length)

    def test_counters_of_the_server_agree_with_those_of_its_requests(self, life: Life) -> None:
        """Where an engine does not tell all of each request, its server tells it of all requests together."""
        target = self.target()
        told_in_full = all(
            request.counters is not None and request.counters.drafted_steps is not None
            for request in every_request(life)
        )
        for round_ in life.rounds:
            shared = round_.server_counters
            assert told_in_full or shared is not None
            if shared is None:
                continue
            agrees_with_itself(shared, target.draft_length)
            tokens = sum(request.output_tokens for request in round_.requests)
            assert inconsistency(target.method, tokens, shared, len(round_.requests)) is None
            own = sum(request.counters.accepted_tokens for request in round_.requests if request.counters)
            assert shared.accepted_tokens == own

    def test_makes_a_measurement(self, life: Life) -> None:
        target = self.target()
        for measurement in life.measurements:
            assert measurement.problems == ()
            assert measurement.finished == len(life.prompts)
            assert 1.0 < measurement.metrics["acceptance_length"] <= 1 + target.draft_length
            assert measurement.metrics["drafted_acceptance_length"] > 1.0
            drafted = sum(measurement.per_position["histogram"])
            assert drafted and len(measurement.per_position["histogram"]) == 1 + target.draft_length

    def test_rounds_repeat(self, life: Life) -> None:
        """Whatever the engine remembers of a prompt, it was made to forget."""
        first, second = (
            {prompt.question_id: (prompt.output_tokens, prompt.steps) for prompt in measurement.prompts}
            for measurement in life.measurements
        )
        assert first == second
        lengths = {measurement.metrics["acceptance_length"] for measurement in life.measurements}
        assert len(lengths) == 1

    def test_still_serves_after_a_reset(self, life: Life) -> None:
        assert life.ready_after_reset

    def test_stop_leaves_nothing(self, life: Life) -> None:
        assert life.processes >= 2, "there was to be a supervisor and an engine"
        assert life.left == []

    def test_asked_to_end_by_others_leaves_nothing(self, logs: Path) -> None:
        target = self.target()
        with Watch() as watch, start(checked(target), target, logs) as server:
            watch.engine().terminate()
            server.wait(GRACE_S)
            assert server.exit_code() is not None
            assert watch.left(GONE_S) == []

    def test_killed_in_mid_stream_fails_the_requests_and_leaves_nothing(
        self, logs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = self.target()
        engine = checked(target)
        batch_sent = _when_sent(self.batch_size, monkeypatch)
        with Watch() as watch, start(engine, target, logs) as server:
            control = Control(server.url)
            prepared = prepared_for(engine, control, Sampling.exactly(self.long_output))
            with ThreadPoolExecutor(1) as thread:
                measuring = thread.submit(
                    record_round,
                    engine,
                    control,
                    prepared,
                    RoundPlan(self.batch_size, conversations=_WITHOUT_END),
                    alive=lambda: death(target, server),
                )
                measuring.add_done_callback(lambda _: batch_sent.set())
                assert batch_sent.wait(FOREVER_S), "the round did not send its requests"
                assert not measuring.done(), "the round was over before its server was killed"
                with stream(server.url, engine, prepared):
                    watch.engine().kill()
                round_ = measuring.result()
            control.close()
            assert watch.left(GONE_S) == []
        killed = f"{target.engine} was killed by SIGKILL"
        assert death(target, server) == killed
        assert len(round_.requests) == _WITHOUT_END
        errors = [request.error for request in round_.requests if request.error is not None]
        assert [error for error in errors if killed not in error] == []
        in_flight = [error for error in errors if not error.startswith("not sent")]
        assert len(in_flight) == self.batch_size
        assert any(error.startswith("the connection broke off after") for error in in_flight)
        assert not any("after 0 bytes" in error for error in in_flight), "they were to be in mid-stream"

    def test_sigkill_of_pytest_in_the_middle_of_a_run_leaves_nothing(self, tmp_path: Path) -> None:
        command = [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider"),
            *("--pyargs", "pytest_speedbench.suite", "-k", "acceptance"),
            *options_of(self.target()),
            f"--speedbench-batch-size={_AT_WORK}",
            f"--speedbench-output-length={self.long_output}",
            "--speedbench-ignore-eos",
        ]
        output = tmp_path / "output.txt"
        with (
            output.open("w") as file,
            subprocess.Popen(command, cwd=tmp_path, stdout=file, stderr=file) as run,
            Watch(run.pid) as watch,
        ):
            try:
                give_up = time.monotonic() + FOREVER_S
                while run.poll() is None and connections(run.pid) < _AT_WORK:
                    assert time.monotonic() < give_up, f"no batch was sent: {output.read_text()}"
                    time.sleep(0.1)
                assert run.poll() is None, f"it ended before it had sent a batch: {output.read_text()}"
            finally:
                run.kill()
            run.wait()
            assert len(watch.seen) >= 2, "there were to be a supervisor and an engine"
            assert watch.left(GONE_S) == []


def _when_sent(requests: int, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once so many requests of a round went out."""
    sent = threading.Event()
    number = count(1)
    send = Connection.send

    def sending(connection: Connection, head: bytes, body: bytes, on_end: Callable[[], None]) -> Response:
        response = send(connection, head, body, on_end)
        if next(number) == requests:
            sent.set()
        return response

    monkeypatch.setattr(Connection, "send", sending)
    return sent


def connections(of: int) -> int:
    """Open ones of a process."""
    found = psutil.Process(of).net_connections(kind="tcp")
    return sum(connection.status == psutil.CONN_ESTABLISHED for connection in found)


@contextlib.contextmanager
def stream(url: str, engine: Engine, prepared: Prepared) -> Iterator[requests.Response]:
    """A generation of one's own, some events of which have come: so that those that were sent before it stream too."""
    import requests

    call = prepared.openings[-1]
    with requests.Session() as session:
        session.trust_env = False
        response = session.post(
            url + call.path, data=call.body, headers=dict(call.headers), stream=True, timeout=FOREVER_S
        )
        assert response.status_code == 200
        events = (line for line in response.iter_lines() if line.startswith(b"data:"))
        assert [next(events) for _ in range(5)]
        with contextlib.closing(response):
            yield response


def checked(target: Target) -> Engine:
    engine = engines.load(target.engine)(target)
    engine.check()
    return engine


def prepared_for(engine: Engine, control: Control, sampling: Sampling) -> Prepared:
    """Single turns of one category: enough for the batch to move on."""
    prompts = [
        replace(prompt, turns=prompt.turns[:1])
        for prompt in load(QUALITATIVE, None, ("coding",), 4).of_category("coding")
    ]
    return prepare(engine, control, prompts, sampling)


def every_request(life: Life) -> Sequence[RequestRecord]:
    return [request for round_ in life.rounds for request in round_.requests]


def agrees_with_itself(counters: Counters, draft_length: int) -> None:
    """Counts of different things in one answer fit together."""
    assert counters.draft_length == draft_length
    if counters.drafted_steps is None or not counters.accepted_per_position:
        return
    bins = histogram(counters.drafted_steps, counters.accepted_per_position)
    assert min(bins) >= 0
    assert sum(bins) == counters.drafted_steps
    assert sum(accepted * steps for accepted, steps in enumerate(bins)) == counters.accepted_tokens


def death(target: Target, server: EngineProcess) -> str | None:
    code = server.exit_code()
    return None if code is None else f"{target.engine} {describe_exit(code)}"
