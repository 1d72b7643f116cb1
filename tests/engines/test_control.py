"""Control calls: what they send with every call, and what their errors keep to themselves."""

from __future__ import annotations

import pytest

from pytest_speedbench.engines.control import Control, without_key
from pytest_speedbench.errors import EngineError
from tests.engines.answering_server import answering
from tests.engines.openai_stub import OpenAiStub, serving

KEY = "sk-1234567890abcdef"


def test_headers_go_with_every_call() -> None:
    with serving(OpenAiStub(key=KEY)) as endpoint:
        control = Control(endpoint.url, headers={"Authorization": f"Bearer {KEY}"})
        assert control.get_json("/v1/models") == {"data": [{"id": "tiny"}]}
        assert control.answers("/v1/models")
        control.close()
    assert endpoint.keys == {f"Bearer {KEY}"}


@pytest.mark.parametrize(("status", "answer"), [(401, f"Incorrect key {KEY}"), (200, f"no JSON: {KEY}")])
def test_a_key_in_an_answer_is_masked_in_the_error(status: int, answer: str) -> None:
    with answering({"GET /v1/models": (status, answer)}) as (plain, _):
        control = Control(plain.url, headers={"Authorization": f"Bearer {KEY}"})
        with pytest.raises(EngineError) as caught:
            control.get_json("/v1/models")
        control.close()
    assert KEY not in str(caught.value)
    assert "MASKED" in str(caught.value)


def test_a_text_without_a_key_stays_as_it_is() -> None:
    assert without_key("all of it", {}) == "all of it"
    assert without_key("all of it", {"Authorization": ""}) == "all of it"


class TestRequireReady:
    def test_a_server_that_is_ready(self) -> None:
        with answering({"GET /health": (200, {})}) as (control, _):
            control.require_ready("/health")

    @pytest.mark.parametrize("status", [401, 403])
    @pytest.mark.parametrize(
        ("headers", "advice"),
        [
            ({}, "no key was sent: set SPEEDBENCH_API_KEY"),
            (
                {"Authorization": f"Bearer {KEY}"},
                "the key that was sent is not accepted: set SPEEDBENCH_API_KEY",
            ),
        ],
        ids=["no-key", "wrong-key"],
    )
    def test_a_key_that_is_missing_or_wrong(self, status: int, headers: dict[str, str], advice: str) -> None:
        with answering({"GET /v1/models": (status, f"no access\nfor {KEY}")}) as (plain, _):
            control = Control(plain.url, headers=headers)
            with pytest.raises(EngineError) as caught:
                control.require_ready("/v1/models")
            control.close()
        shown = "MASKED" if headers else KEY
        assert str(caught.value) == (
            f"--speedbench-url={plain.url}: GET {plain.url}/v1/models answered {status}: no access for {shown}; {advice}"
        )

    def test_a_server_that_loads_its_model(self) -> None:
        with (
            answering({"GET /health": (503, "loading")}) as (control, _),
            pytest.raises(EngineError, match="/health answered 503: loading"),
        ):
            control.require_ready("/health")

    def test_no_server(self) -> None:
        control = Control("http://127.0.0.1:1")
        with pytest.raises(
            EngineError, match=r"^--speedbench-url=http://127.0.0.1:1: .*; is the server running\?$"
        ):
            control.require_ready("/health")
        control.close()
