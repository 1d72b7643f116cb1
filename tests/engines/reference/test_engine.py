from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import requests

from pytest_speedbench.engines.base import Generation, Message
from pytest_speedbench.engines.control import Control
from pytest_speedbench.engines.reference.engine import ReferenceEngine
from pytest_speedbench.errors import SettingsError
from pytest_speedbench.settings.target import Sampling, Target
from tests.engines.reference.decode import chat, decoding, generate
from tests.engines.reference.texts import STORY

TARGET = Target(name="reference", engine="reference", method="draft_model", draft_length=3)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = ReferenceEngine(TARGET).launch(0).command
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        match = re.search(r"http://\S+", server.stdout.readline())
        assert match
        yield match[0]
        server.terminate()


@pytest.fixture
def control(url: str) -> Iterator[Control]:
    control = Control(url)
    yield control
    control.close()


def test_the_command_follows_from_the_target() -> None:
    target = replace(
        TARGET, draft_length=5, engine_args=("--draft-quality", "0.9"), engine_python="/opt/python"
    )
    assert ReferenceEngine(target).launch(8123).command == (
        "/opt/python",
        *("-m", "pytest_speedbench.engines.reference", "--port", "8123"),
        *("--method", "draft_model", "--draft-length", "5", "--draft-quality", "0.9"),
    )


def test_without_a_method_there_is_no_draft_length() -> None:
    launch = ReferenceEngine(replace(TARGET, method="none", draft_length=0)).launch(8123)
    assert launch.command == (
        sys.executable,
        *("-m", "pytest_speedbench.engines.reference", "--port", "8123", "--method", "none"),
    )


@pytest.mark.parametrize("method", ["none", "ngram", "draft_model"])
def test_its_own_methods_are_good(method: str) -> None:
    ReferenceEngine(replace(TARGET, method=method, engine_args=("--fault=crash", "--seed", "3"))).check()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            replace(TARGET, method="eagle3"),
            "--speedbench-method=eagle3: engine reference has draft_model, ngram, none",
        ),
        (
            replace(TARGET, model="llama"),
            "--speedbench-model=llama: the models of engine reference are built in",
        ),
        (replace(TARGET, draft_length=0), "--speedbench-draft-length=0: allowed is a whole number from 1"),
        (replace(TARGET, engine_args=("--port=1",)), "--speedbench-engine-arg=--port: the plugin chooses"),
        (
            replace(TARGET, engine_args=("--method", "none")),
            "--speedbench-engine-arg=--method: use --speedbench-me",
        ),
    ],
)
def test_a_target_it_cannot_launch_is_refused_in_one_line(target: Target, message: str) -> None:
    with pytest.raises(SettingsError) as refused:
        ReferenceEngine(target).check()
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_a_generation_goes_out_and_comes_back(control: Control) -> None:
    engine = ReferenceEngine(TARGET)
    token_ids = engine.tokenize(control, [Message("user", STORY)])
    assert token_ids == tuple(chat(STORY))
    call = engine.call(Generation(Sampling.exactly(48), token_ids=token_ids))
    response = requests.post(control.url + call.path, data=call.body, headers=dict(call.headers), timeout=20)
    payloads = [line.removeprefix(b"data: ") for line in response.content.split(b"\n\n") if line]
    reply = engine.read([payload for payload in payloads if payload != b"[DONE]"])

    tokens, steps = generate(decoding(chat(STORY), "draft_model"), 48)
    assert reply.token_ids == tuple(tokens)
    assert reply.output_tokens == 48
    assert reply.tokens_per_event[0] == 1
    assert sum(count > 0 for count in reply.tokens_per_event) == 1 + len(steps)
    assert reply.counters is not None
    assert reply.counters.source == "response"
    assert reply.counters.drafted_steps == len(steps)
    assert reply.counters.accepted_tokens == sum(step.accepted for step in steps)


def test_a_chat_without_token_ids_is_the_same_prompt(control: Control) -> None:
    engine = ReferenceEngine(TARGET)
    call = engine.call(Generation(Sampling.exactly(8), messages=(Message("user", STORY),)))
    response = requests.post(control.url + call.path, data=call.body, headers=dict(call.headers), timeout=20)
    payloads = [line.removeprefix(b"data: ") for line in response.content.split(b"\n\n") if line]
    reply = engine.read([payload for payload in payloads if payload != b"[DONE]"])
    assert reply.prompt_tokens == len(chat(STORY))
    assert reply.token_ids == tuple(generate(decoding(chat(STORY), "draft_model"), 8)[0])


def test_it_says_what_it_is_and_counts(control: Control) -> None:
    engine = ReferenceEngine(TARGET)
    assert control.answers(engine.ready_path)
    assert re.fullmatch(r"\d+\.\d+.*", engine.version(control))
    assert engine.hardware(control).key == "modelled accelerator x 1"
    engine.reset(control)
    counters = engine.server_counters(control)
    assert counters is not None and counters.draft_length == 3
