"""What an engine is: how to launch it, how to speak to it, and which counters it offers.

An engine module decides nothing about what a number means. It hands over raw counters; `metrics/`
turns them into an acceptance length.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pytest_speedbench.engines.guard import Returns, guard
from pytest_speedbench.settings.methods import Method, Offer

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
    tokens_per_event_known: bool = True
    """False where only the total is: `tokens_per_event` then counts each event as one token."""


_RETURNS: Returns = {
    "__init__": (),
    "ready_path": (str,),
    "counts_per_request": (bool,),
    "server_counts_more": (bool,),
    "check": (),
    "launch": (Launch,),
    "call": (HttpCall,),
    "read": (Reply,),
    "version": (str,),
    "hardware": (Hardware,),
    "tokenize": (tuple, type(None)),
    "reset": (),
    "server_counters": (Counters, type(None)),
    "requests_at_once": (int,),
    "authorization": (Mapping,),
}
"""What others implement, and what it returns."""


class Engine(ABC):
    """An inference server of one kind, set up for one target; the base of every engine.

    What has a default here says that an engine does not have the thing.

    Args:
        target: what to serve. No I/O is done with it until `check`.
    """

    name: ClassVar[str]
    """As in `--speedbench-engine`."""
    methods: ClassVar[Collection[Method | str]] = ("none",)
    """Methods this engine has: by name those of `settings.methods.METHODS`, and `Method`s of its own."""
    default_method: ClassVar[str] = "none"
    """Where a target names none."""
    messages_only: ClassVar[bool] = False
    """Whether prompts go out as chat messages, whatever tokenizer there is."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        guard(cls, _RETURNS)

    def __init__(self, target: Target) -> None:
        self.target = target

    @classmethod
    def offer(cls) -> Offer:
        """What this engine brings to the settings of a target."""
        return Offer.of(cls.name, cls.methods, cls.default_method)

    @property
    def method(self) -> Method:
        """The target's method.

        Raises:
            SettingsError: this engine does not have it.
        """
        return self.offer().method(self.target.method)

    @property
    def ready_path(self) -> str:
        """Answers 200 once the server can generate."""
        return "/health"

    @property
    def counts_per_request(self) -> bool:
        """Whether responses carry all counters; if not, `server_counters` are read before and after each round.

        Asked after `version` and `reset`, in which an engine may find out from a server that already runs.
        """
        return False

    @property
    def server_counts_more(self) -> bool:
        """Whether the server counts decode steps that responses leave open: it is then read around rounds as well."""
        return False

    def check(self) -> None:
        """Refuse a target that cannot be launched (no model, missing path, interpreter without the engine).

        Raises:
            SettingsError: one line naming the option, its value and what is allowed.
        """
        _ = self.method

    @abstractmethod
    def launch(self, port: int) -> Launch:
        """The command that serves the target on 127.0.0.1:`port`."""

    @abstractmethod
    def call(self, generation: Generation) -> HttpCall:
        """Encode one streaming generation."""

    @abstractmethod
    def read(self, events: Sequence[bytes]) -> Reply:
        """Decode the `data:` payloads of one response stream, `[DONE]` left out.

        Raises:
            EngineError: the stream carries an error or is not what the engine documents.
        """

    @abstractmethod
    def version(self, control: Control) -> str:
        """Version of the engine that is running. The first call to a server, whether launched or attached to."""

    @abstractmethod
    def hardware(self, control: Control) -> Hardware:
        """What the engine computes on."""

    def tokenize(self, control: Control, messages: Sequence[Message]) -> tuple[int, ...] | None:
        """Token ids of a chat, template and generation prompt applied once; None where the engine cannot."""
        return None

    def reset(self, control: Control) -> None:  # noqa: B027 - not abstract: nothing to forget is the rule
        """Forget what earlier prompts left behind (prefix cache, n-gram pools). Called before each round."""

    def server_counters(self, control: Control) -> Counters | None:
        """Counters since the server's start, or None where it has none."""
        return None

    def requests_at_once(self, control: Control) -> int:
        """Requests computed concurrently; what exceeds them waits, so that no larger batch size can be measured."""
        return sys.maxsize

    def authorization(self) -> Mapping[str, str]:
        """Headers for every control call. What they hold is kept out of errors; generations carry their own."""
        return {}
