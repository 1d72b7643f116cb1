"""The embedded engine as the plugin sees it: how it is launched and spoken to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_speedbench.engines.base import Counters, Generation, Hardware, HttpCall, Launch, Message, Reply
from pytest_speedbench.engines.openai_wire import completion_call, prometheus_counters, read_stream, tokenize
from pytest_speedbench.errors import SettingsError

if TYPE_CHECKING:
    from pytest_speedbench.engines.control import Control
    from pytest_speedbench.settings.target import Target

_MODEL = "reference"
_OWNED = {
    "--host": "the plugin chooses where the server listens",
    "--port": "the plugin chooses where the server listens",
    "--method": "use --speedbench-method",
    "--draft-length": "use --speedbench-draft-length",
}
"""Launch arguments that a target may not give, and what to do instead."""


class ReferenceEngine:
    """Launches `python -m pytest_speedbench.engines.reference`. Further launch arguments are its own options.

    Args:
        target: what to serve; its models are built in.
    """

    name = "reference"
    methods = frozenset({"none", "ngram", "draft_model"})
    ready_path = "/health"
    counts_per_request = True

    def __init__(self, target: Target) -> None:
        self._target = target

    def check(self) -> None:
        """Refuse models, which are built in, methods that are not, and arguments that belong to the target.

        Raises:
            SettingsError: one line naming the option, its value and what is allowed.
        """
        target = self._target
        if target.method not in self.methods:
            raise SettingsError(
                f"--speedbench-method={target.method}: engine reference has {', '.join(sorted(self.methods))}"
            )
        if target.url is not None:
            return
        for option, value in (("model", target.model), ("draft-model", target.draft_model)):
            if value is not None:
                raise SettingsError(
                    f"--speedbench-{option}={value}: the models of engine reference are built in; leave it out"
                )
        if target.method != "none" and target.draft_length < 1:
            raise SettingsError(
                f"--speedbench-draft-length={target.draft_length}: allowed is a whole number from 1"
            )
        for argument in target.engine_args:
            if instead := _OWNED.get(argument.split("=", 1)[0]):
                raise SettingsError(f"--speedbench-engine-arg={argument}: {instead}")

    def launch(self, port: int) -> Launch:
        """The command that serves the target on 127.0.0.1:`port`."""
        target = self._target
        command = [target.engine_python or sys.executable, "-m", "pytest_speedbench.engines.reference"]
        command += ["--port", str(port), "--method", target.method]
        if target.method != "none":
            command += ["--draft-length", str(target.draft_length)]
        return Launch((*command, *target.engine_args))

    def call(self, generation: Generation) -> HttpCall:
        """Encode one streaming generation."""
        return completion_call(generation, _MODEL)

    def read(self, events: Sequence[bytes]) -> Reply:
        """Decode the `data:` payloads of one response stream, `[DONE]` left out.

        Raises:
            EngineError: the stream carries an error or is not what the engine documents.
        """
        return read_stream(events)

    def tokenize(self, control: Control, messages: Sequence[Message]) -> tuple[int, ...] | None:
        """Token ids of a chat, template and generation prompt applied once."""
        return tokenize(control, messages, _MODEL)

    def reset(self, control: Control) -> None:
        """Nothing to forget: every request is computed from its own prompt alone."""

    def server_counters(self, control: Control) -> Counters | None:
        """Counters since the server's start, or None with method `none`."""
        return prometheus_counters(control)

    def version(self, control: Control) -> str:
        """Version of the engine that is running."""
        return str(control.get_json("/version")["version"])

    def hardware(self, control: Control) -> Hardware:
        """The modelled accelerator, the same on every machine."""
        return Hardware("modelled accelerator")
