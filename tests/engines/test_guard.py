"""A mistake of an engine's author is one line that names class and method."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import pytest

from pytest_speedbench.engines.base import Generation, Hardware, HttpCall, Launch, Reply
from pytest_speedbench.engines.control import Control
from pytest_speedbench.errors import EngineError, SettingsError
from pytest_speedbench.settings.target import Sampling, Target
from tests.load.stub_engine import TARGET, StubEngine

CONTROL = Control("http://127.0.0.1:1")


class Mistaken(StubEngine):
    name = "mine"

    @property
    def ready_path(self) -> str:
        return dict[str, str]()["health"]

    def check(self) -> None:
        raise SettingsError("--speedbench-model: none")

    def launch(self, port: int) -> Launch:
        return ["serve", str(port)]  # type: ignore[return-value]

    def read(self, events: Sequence[bytes]) -> Reply:
        raise ValueError("two\nlines")

    def version(self, control: Control) -> str:
        return 1.5  # type: ignore[return-value]

    def tokenize(self, control: Control, messages: Sequence[Any]) -> tuple[int, ...] | None:
        return [1, 2]  # type: ignore[return-value]

    def reset(self, control: Control) -> None:
        raise EngineError("as it should be")

    def hardware(self, control: Control) -> Hardware:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda engine: engine.read([]), "Mistaken.read raised ValueError: two lines (test_guard.py:"),
        (lambda engine: engine.ready_path, "Mistaken.ready_path raised KeyError: 'health' (test_guard.py:"),
        (lambda engine: engine.launch(1), "Mistaken.launch returned list, not Launch"),
        (lambda engine: engine.version(CONTROL), "Mistaken.version returned float, not str"),
        (lambda engine: engine.tokenize(CONTROL, ()), "Mistaken.tokenize returned list, not tuple or None"),
    ],
    ids=["raises", "property", "launch", "version", "tokenize"],
)
def test_it_is_one_line(call: Any, line: str) -> None:
    with pytest.raises(EngineError) as caught:
        call(Mistaken())
    assert str(caught.value).startswith(f"engine mine: {line}")
    assert "\n" not in str(caught.value)


def test_errors_for_people_and_interruptions_pass_as_they_are() -> None:
    with pytest.raises(EngineError, match=r"^as it should be$"):
        Mistaken().reset(CONTROL)
    with pytest.raises(SettingsError, match=r"^--speedbench-model: none$"):
        Mistaken().check()
    with pytest.raises(KeyboardInterrupt):
        Mistaken().hardware(CONTROL)


def test_a_constructor_is_guarded_too() -> None:
    class Eager(StubEngine):
        name = "eager"

        def __init__(self, target: Target) -> None:
            super().__init__(target)
            raise FileNotFoundError("weights")

    with pytest.raises(
        EngineError, match=r"^engine eager: Eager\.__init__ raised FileNotFoundError: weights"
    ):
        Eager(TARGET)


def test_what_is_right_passes_and_travels_to_other_processes() -> None:
    engine = pickle.loads(pickle.dumps(StubEngine()))
    assert isinstance(engine.call(Generation(Sampling.exactly(8), token_ids=(1,))), HttpCall)
