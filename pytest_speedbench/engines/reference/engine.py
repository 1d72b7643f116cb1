"""The embedded engine as the plugin sees it: how it is launched and spoken to."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pytest_speedbench.engines.base import (
    Counters,
    Engine,
    Generation,
    Hardware,
    HttpCall,
    Launch,
    Message,
    Reply,
)
from pytest_speedbench.engines.launch import arguments
from pytest_speedbench.engines.openai_wire import completion_call, prometheus_counters, read_stream, tokenize
from pytest_speedbench.errors import SettingsError
from pytest_speedbench.settings.methods import METHODS, Method

if TYPE_CHECKING:
    from pytest_speedbench.engines.control import Control

_MODEL = "reference"
_OWNED = {
    "--host": "the plugin chooses where the server listens",
    "--port": "the plugin chooses where the server listens",
    "--method": "use --speedbench-method",
    "--draft-length": "use --speedbench-draft-length",
}
"""Launch arguments that a target may not give, and what to do instead."""


class ReferenceEngine(Engine):
    """Launches `python -m pytest_speedbench.engines.reference`. Further launch arguments are its own options.

    Args:
        target: what to serve; its models are built in.
    """

    name = "reference"
    methods: ClassVar[Collection[Method | str]] = (
        "none",
        "ngram",
        replace(METHODS["draft_model"], draft_model="none"),
    )
    default_method = "draft_model"
    counts_per_request = True

    def check(self) -> None:
        """Refuse models, which are built in, methods that are not, and arguments that belong to the target.

        Raises:
            SettingsError: one line naming the option, its value and what is allowed.
        """
        target, method = self.target, self.method
        if target.url is not None:
            return
        if target.model is not None:
            raise SettingsError(
                f"--speedbench-model={target.model}: the models of engine reference are built in; leave it out"
            )
        arguments.refuse_draft_length(target, method)
        arguments.refuse_owned(arguments.flags(target.engine_args), _OWNED)

    def launch(self, port: int) -> Launch:
        """The command that serves the target on 127.0.0.1:`port`."""
        target = self.target
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

    def server_counters(self, control: Control) -> Counters | None:
        """Counters since the server's start, or None with method `none`."""
        return prometheus_counters(control)

    def version(self, control: Control) -> str:
        """Version of the engine that is running."""
        return str(control.get_json("/version")["version"])

    def hardware(self, control: Control) -> Hardware:
        """The modelled accelerator, the same on every machine."""
        return Hardware("modelled accelerator")
