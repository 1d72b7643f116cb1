"""What an engine is: how to launch it, how to speak to it, and which counters it offers.

An engine module decides nothing about what a number means. It hands over raw counters; `metrics/`
turns them into an acceptance length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pytest_speedbench.engines.control import Control
    from pytest_speedbench.settings.target import Sampling, Target


ESTIMATED = "estimated"
"""`Counters.source` where stream events were taken for decode steps, which they need not be."""


@dataclass(frozen=True)
class Launch:
    """How to start a server."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of the test process."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Texts by name, written beside the log; an argument `{name}` is replaced by the path."""


@dataclass(frozen=True)
class Hardware:
    """What the engine computes on. Throughput compares only within one `Hardware`."""

    accelerator: str
    count: int = 1

    @property
    def key(self) -> str:
        """Name under which a baseline keeps its throughput: `NVIDIA H100 80GB HBM3 x 8`."""
        return f"{self.accelerator} x {self.count}"


@dataclass(frozen=True)
class Message:
    """One message of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class Generation:
    """One turn to be generated: exactly one of `token_ids` and `messages` is given."""

    sampling: Sampling
    token_ids: tuple[int, ...] | None = None
    messages: tuple[Message, ...] | None = None


@dataclass(frozen=True)
class HttpCall:
    """A generation as it goes over the wire, ready before the clock starts."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(
        default_factory=lambda: {"Content-Type": "application/json"}, repr=False
    )
    """May hold a key, and so is never shown."""


@dataclass(frozen=True)
class Counters:
    """What speculative decoding did, as the engine counted it; no interpretation.

    Covers one request, or, where an engine counts per server only, everything since its start (so that a
    difference covers one round on an otherwise idle server).
    """

    source: str
    """Where they were read: for example `response` or `prometheus`; or `ESTIMATED`."""
    drafted_steps: int | None
    """Decode steps that verified at least one draft token; None where they are not told."""
    drafted_tokens: int | None
    """None where they are not told."""
    accepted_tokens: int
    """Draft tokens accepted by verification, those cut off at the end of the output included."""
    accepted_per_position: tuple[int, ...]
    """Steps in which the draft token at position 1, 2, ... k was accepted (joint: all before it were); empty where
    they are not told."""
    draft_length: int
    """Longest draft (k)."""
    decode_steps: int | None = None
    """All decode steps, those without a draft included, where the engine itself counts them."""
    output_tokens: int | None = None
    """Tokens that were generated, each request's first included, where a server counts them with the rest: what tells
    whether all that was sent is counted already."""


@dataclass(frozen=True)
class Reply:
    """A response stream, decoded after it ended."""

    text: str
    tokens_per_event: tuple[int, ...]
    """New output tokens in each event given to `Engine.read`, in order; 0 for events without tokens."""
    output_tokens: int
    """As the engine counted them (`usage`), never the number of events."""
    prompt_tokens: int | None
    token_ids: tuple[int, ...] | None
    """The output's token ids, where the engine tells them."""
    finish_reason: str | None
    counters: Counters | None
    """Per-request counters, or None where the response had none."""


class Engine(Protocol):
    """An inference server of one kind, set up for one target. Built from the target alone; does no I/O then."""

    name: str
    """As in `--speedbench-engine`."""
    methods: frozenset[str]
    """Methods this engine can be launched with."""
    ready_path: str
    """Answers 200 once the server can generate, such as `/health`."""

    def __init__(self, target: Target) -> None: ...

    @property
    def counts_per_request(self) -> bool:
        """Whether responses carry all counters; if not, `server_counters` are read before and after each round.

        Asked after `version` and `reset`, in which an engine may find out from a server that already runs.
        """

    def check(self) -> None:
        """Refuse a target that cannot be launched (no model, missing path, interpreter without the engine).

        Raises:
            SettingsError: one line naming the option, its value and what is allowed.
        """

    def launch(self, port: int) -> Launch:
        """The command that serves the target on 127.0.0.1:`port`."""

    def call(self, generation: Generation) -> HttpCall:
        """Encode one streaming generation."""

    def read(self, events: Sequence[bytes]) -> Reply:
        """Decode the `data:` payloads of one response stream, `[DONE]` left out.

        Raises:
            EngineError: the stream carries an error or is not what the engine documents.
        """

    def tokenize(self, control: Control, messages: Sequence[Message]) -> tuple[int, ...] | None:
        """Token ids of a chat, template and generation prompt applied once; None where the engine cannot."""

    def reset(self, control: Control) -> None:
        """Forget what earlier prompts left behind (prefix cache, n-gram pools). Called before each round."""

    def server_counters(self, control: Control) -> Counters | None:
        """Counters since the server's start, or None where there are none."""

    def version(self, control: Control) -> str:
        """Version of the engine that is running."""

    def hardware(self, control: Control) -> Hardware:
        """What the engine computes on."""


@runtime_checkable
class Bounded(Protocol):
    """An engine that may add this method: its server says how many requests it computes at once."""

    def requests_at_once(self, control: Control) -> int:
        """Requests computed at once; what exceeds them waits, so that no larger batch size can be measured."""


@runtime_checkable
class CountsStepsPerServer(Protocol):
    """An engine that may add this method: its responses leave open how many steps had no draft, and its server tells."""

    def tells_all_steps(self) -> bool:
        """Whether that is so of this target: `server_counters` are then read around each round as well."""


@runtime_checkable
class Authorized(Protocol):
    """An engine that may add this method: its server wants a key."""

    def authorization(self) -> Mapping[str, str]:
        """Headers for every control call. What they hold is kept out of errors; generations carry their own."""


@runtime_checkable
class SpeaksMessages(Protocol):
    """An engine that may add this attribute: prompts go out as chat messages, whatever tokenizer there is."""

    messages_only: bool
