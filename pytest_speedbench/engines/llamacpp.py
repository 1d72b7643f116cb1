"""llama.cpp: `llama-server` with speculative decoding, measured by what its responses and `/metrics` tell.

What llama.cpp (as of llama-cpp-python 0.3.36) counts, read from `tools/server/server-context.cpp` and checked on a
running server:

- The last event of a response tells `draft_n_accepted`, and in `tokens_cached` how far its key-value cache has
  come: the prompt, and for every decode step one token and the accepted drafts. So

      decode steps = tokens_cached - tokens_evaluated - draft_n_accepted

  for every method, steps without a draft included, whether the output ended at its length or at an
  end-of-sequence token with accepted drafts behind it.
- A draft is no longer than the tokens that remain, less one: at the output's length there is no overshoot.
- Which steps had a draft, and how many drafts were accepted at each position, `/metrics` alone tells, for the
  server as a whole. It prints its numbers with six digits, all but the accepted drafts by position: from a million
  drafts on, which steps had one is not known.
- An event is held back while its text ends inside a character, so that events are not tokens.

Each slot has a key-value cache of its own. Shared by all (`--kv-unified`), 4 of 11 cells of 8 requests at once differed
between two equal runs, by 0.4 % at most, and took twice the time on a CPU; apart, 1 of 11 did now and then, for
rounding depends on which requests share a batch. One request at a time repeats exactly.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

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
from pytest_speedbench.engines.launch import arguments, environment, hardware
from pytest_speedbench.engines.openai_wire import StreamEvent, decode_events, prometheus_counters
from pytest_speedbench.errors import EngineError, SettingsError

if TYPE_CHECKING:
    from pytest_speedbench.engines.control import Control
    from pytest_speedbench.settings.methods import Method

_PROGRAM = "llama-server"
_TYPES = {
    "none": "none",
    "ngram": "ngram-simple",
    "draft_model": "draft-simple",
    "eagle3": "draft-eagle3",
    "mtp": "draft-mtp",
    "dflash": "draft-dflash",
}
"""`--spec-type` of each method. Its other n-gram types learn from earlier requests."""
_SLOTS = 32
"""Requests computed at once, where no launch argument says otherwise: the largest batch size of the default grid."""

_CHOSEN = "the plugin chooses where the server listens"
_FAKES = "fakes acceptance, and so cannot be measured"
_OWNED = {
    "-m": "use --speedbench-model",
    "--model": "use --speedbench-model",
    "-hf": "use --speedbench-model",
    "--hf-repo": "use --speedbench-model",
    "--host": _CHOSEN,
    "--port": _CHOSEN,
    "--api-prefix": _CHOSEN,
    "--api-key": "the plugin calls the server without a key",
    "--api-key-file": "the plugin calls the server without a key",
    "-md": "use --speedbench-draft-model",
    "--model-draft": "use --speedbench-draft-model",
    "--spec-draft-model": "use --speedbench-draft-model",
    "--spec-type": "use --speedbench-method",
    "--spec-default": "use --speedbench-method",
    "--spec-draft-n-max": "use --speedbench-draft-length",
    "--spec-ngram-simple-size-m": "use --speedbench-draft-length",
    "--spec-synth-len": _FAKES,
    "--spec-synth-rates": _FAKES,
    "--cache-prompt": "prompts are measured without a prefix cache",
    "--cache-ram": "prompts are measured without a prefix cache",
    "-cram": "prompts are measured without a prefix cache",
    "--context-shift": "a prompt is measured whole",
}
"""Launch arguments that a target may not give, and what to do instead."""

_FAKING = {"LLAMA_ARG_SPEC_SYNTH_LEN": None, "LLAMA_ARG_SPEC_SYNTH_RATES": None}
"""Variables that llama-server takes for arguments."""
_TOLD_AT_THE_END = (
    "content",
    "tokens",
    "stop",
    "stop_type",
    "truncated",
    "tokens_predicted",
    "tokens_evaluated",
    "tokens_cached",
    "timings",
)
"""Without a choice the last event repeats the prompt and some fifty settings."""
_FINISH = {"limit": "length", "eos": "stop", "word": "stop"}
_ROUNDED_FROM = 1_000_000
"""Six digits are printed of a count."""
_DEVICE = re.compile(r"^\s+(?P<id>\w+): (?P<name>.+?) \(\d+ MiB, \d+ MiB free\)$", re.MULTILINE)


class _Timings(msgspec.Struct, gc=False):
    draft_n: int = 0
    draft_n_accepted: int = 0


class _Event(StreamEvent, gc=False):
    content: str | None = None
    tokens: list[int] | None = None
    tokens_predicted: int = 0
    tokens_evaluated: int | None = None
    tokens_cached: int | None = None
    truncated: bool = False
    stop: bool = False
    stop_type: str | None = None
    timings: _Timings | None = None


class LlamaCppEngine(Engine):
    """A llama.cpp server for one target: launched, or attached to where the target has a URL.

    `--speedbench-engine-python` names the `llama-server` program, for want of an interpreter.
    """

    name = "llamacpp"
    methods: ClassVar[Collection[Method | str]] = tuple(_TYPES)

    def check(self) -> None:
        """Refuse a target that cannot be launched.

        Raises:
            SettingsError: one line naming the option, its value and what is allowed.
        """
        target = self.target
        method = self.method
        if target.url is not None:
            return
        if target.model is None:
            raise SettingsError("--speedbench-engine=llamacpp needs --speedbench-model: a .gguf file")
        _refuse_missing("--speedbench-model", target.model)
        arguments.refuse_draft_length(target, method)
        if target.draft_model is None and method.draft_model == "needed":
            raise SettingsError(
                f"--speedbench-method={target.method} needs --speedbench-draft-model: a .gguf file"
            )
        if target.draft_model is not None:
            _refuse_missing("--speedbench-draft-model", target.draft_model)
        arguments.refuse_owned(arguments.flags(target.engine_args), _OWNED)
        environment.refuse_faking(target, _FAKING)
        _ = self._program

    def launch(self, port: int) -> Launch:
        """The command that serves the target on 127.0.0.1:`port`."""
        target = self.target
        command = [self._program, "-m", os.path.expanduser(str(target.model))]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        command += ["--no-cache-prompt", "--cache-ram", "0", "--metrics", "--offline"]
        # A given number of slots gives each a key-value cache of its own, so that requests do not disturb each
        # other's rounding, and a fixed share of `--ctx-size`.
        command += ["--parallel", str(_SLOTS)]
        command += ["--spec-type", _TYPES[target.method]]
        if target.draft_model is not None:
            command += ["--spec-draft-model", os.path.expanduser(target.draft_model)]
        if target.method == "ngram":
            command += ["--spec-ngram-simple-size-m", str(target.draft_length)]
        elif target.method != "none":
            command += ["--spec-draft-n-max", str(target.draft_length)]
        return Launch((*command, *_apart(target.engine_args)))

    def call(self, generation: Generation) -> HttpCall:
        """Encode one streaming generation.

        Raises:
            EngineError: it has no token ids.
        """
        if generation.token_ids is None:
            raise EngineError("llama.cpp is sent token ids: it tokenizes chats itself (see `tokenize`)")
        sampling = generation.sampling
        body = {
            "prompt": list(generation.token_ids),
            "n_predict": sampling.output_length,
            "temperature": sampling.temperature,
            "samplers": ["temperature"],  # by default it cuts the distribution in five ways
            "seed": sampling.seed,
            "ignore_eos": sampling.ignore_eos,
            "cache_prompt": False,
            "return_tokens": True,
            "response_fields": list(_TOLD_AT_THE_END),
            "stream": True,
        }
        # It closes the connection after every stream, and announces to keep it: the next request would be lost.
        headers = {"Content-Type": "application/json", "Connection": "close"}
        return HttpCall("/completion", json.dumps(body).encode(), headers)

    def read(self, events: Sequence[bytes]) -> Reply:
        """Decode the `data:` payloads of one response stream.

        Raises:
            EngineError: the stream carries an error or is not what llama.cpp documents.
        """
        chunks = decode_events(events, _Event)
        told = [0, *(chunk.tokens_predicted for chunk in chunks)]
        if any(later < earlier for earlier, later in pairwise(told)):
            raise EngineError("the response stream's `tokens_predicted` goes back")
        last = chunks[-1] if chunks else _Event()
        if last.truncated:
            raise EngineError(
                f"a slot's context was full after {last.tokens_cached} tokens; launch the server with more: "
                "--ctx-size is shared equally by the slots of --parallel (--speedbench-engine-arg)"
            )
        ids = tuple(token for chunk in chunks for token in chunk.tokens or ())
        return Reply(
            text="".join(chunk.content or "" for chunk in chunks),
            tokens_per_event=tuple(later - earlier for earlier, later in pairwise(told)),
            output_tokens=told[-1],
            prompt_tokens=last.tokens_evaluated,
            token_ids=ids if len(ids) == told[-1] else None,
            finish_reason=_FINISH.get(last.stop_type or "") if last.stop else None,
            counters=self._counters(last),
        )

    def tokenize(self, control: Control, messages: Sequence[Message]) -> tuple[int, ...] | None:
        """Token ids of a chat, template and generation prompt applied once, as the server itself would."""
        chat = [{"role": message.role, "content": message.content} for message in messages]
        prompt = control.post_json("/apply-template", {"messages": chat})["prompt"]
        # The template is applied without its BOS token, which tokenization adds.
        body = {"content": prompt, "add_special": True, "parse_special": True}
        return tuple(int(token) for token in control.post_json("/tokenize", body)["tokens"])

    def reset(self, control: Control) -> None:
        """Nothing to forget: every request is sent with `cache_prompt: false`, and n-grams are its own."""

    def server_counters(self, control: Control) -> Counters | None:
        """Counters since the server's start; None where it does not draft or was started without `--metrics`."""
        if self.target.method == "none":
            return None
        told = prometheus_counters(control, prefix="llamacpp:")
        if told is None:
            return None
        # Positions come into being with the first draft, and are printed in full.
        return replace(
            told,
            drafted_steps=_unrounded(told.drafted_steps),
            drafted_tokens=_unrounded(told.drafted_tokens),
            accepted_tokens=sum(told.accepted_per_position),
            draft_length=self.target.draft_length,
        )

    def requests_at_once(self, control: Control) -> int:
        """The server's slots: what exceeds them waits."""
        return int(control.get_json("/props")["total_slots"])

    def version(self, control: Control) -> str:
        """Build number and commit of the llama.cpp that is running: `b6500-0c1e57098`."""
        return str(control.get_json("/props")["build_info"])

    def hardware(self, control: Control) -> Hardware:
        """What llama.cpp computes on, as it lists its devices itself; of an attached server, its machine's."""
        if self.target.url is not None:
            return hardware.attached(self.target)
        answer = _output(self._program, "--list-devices", environment.environment_of(self.target))
        names = {device["id"]: device["name"] for device in _DEVICE.finditer(answer)}
        for flag, chosen in arguments.flags(self.target.engine_args):
            if flag in ("-dev", "--device"):
                names = {name: names[name] for name in chosen.split(",") if name in names}
            elif flag in ("-ngl", "--gpu-layers", "--n-gpu-layers") and chosen == "0":
                names = {}
        return hardware.launched(list(names.values()), len(names))

    def _counters(self, last: _Event) -> Counters | None:
        cached, evaluated, timings = last.tokens_cached, last.tokens_evaluated, last.timings
        if self.target.method == "none" or cached is None or evaluated is None or timings is None:
            return None
        return Counters(
            source="response",
            drafted_steps=None,
            drafted_tokens=timings.draft_n,
            accepted_tokens=timings.draft_n_accepted,
            accepted_per_position=(),
            draft_length=self.target.draft_length,
            decode_steps=cached - evaluated - timings.draft_n_accepted,
        )

    @cached_property
    def _program(self) -> str:
        chosen = self.target.engine_python
        program = chosen or shutil.which(_PROGRAM)
        if program is None:
            raise SettingsError(
                f"--speedbench-engine=llamacpp: there is no {_PROGRAM} on PATH; "
                "name it with --speedbench-engine-python, which takes that program instead of an interpreter"
            )
        if "--spec-type" not in _output(program, "--help"):
            where = "found on PATH" if chosen is None else "--speedbench-engine-python"
            raise SettingsError(
                f"--speedbench-engine=llamacpp: {program} ({where}) is no {_PROGRAM} whose --help lists --spec-type; "
                "--speedbench-engine-python takes the path of one"
            )
        return program


def _unrounded(count: int | None) -> int | None:
    """A count of `/metrics`; None beyond six digits, where a round's share of it would be lost in its rounding."""
    return count if count is not None and count < _ROUNDED_FROM else None


def _apart(engine_args: Sequence[str]) -> Iterator[str]:
    """`--flag=value` as two arguments, for llama.cpp knows no other form."""
    for argument in engine_args:
        flag, assigned, value = argument.partition("=")
        yield from (flag, value) if assigned and flag.startswith("-") else (argument,)


def _output(program: str, argument: str, environment: Mapping[str, str] | None = None) -> str:
    """What a program prints, or nothing where it does not run."""
    try:
        answer = subprocess.run(
            [program, argument], capture_output=True, text=True, timeout=60, errors="replace", env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout + answer.stderr


def _refuse_missing(option: str, model: str) -> None:
    if not Path(model).expanduser().is_file():
        raise SettingsError(f"{option}={model}: there is no such file; llama.cpp takes a .gguf file")
