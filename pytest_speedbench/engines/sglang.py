"""SGLang: its server with speculative decoding, measured by the counters of each response.

Token ids go to the native `/generate`. Of SGLang's two ways to take them it is the one that carries in its stream,
in every version with per-request counters, both the counters (`meta_info`, unasked) and the ids that were generated,
with the running number of tokens in every event. `/v1/completions` tells any of it only where asked by fields
that came in different versions, and silently ignores those that a version does not know.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pytest_speedbench.engines import openai_wire, sglang_wire
from pytest_speedbench.engines.base import Engine, Generation, Hardware, HttpCall, Launch, Message, Reply
from pytest_speedbench.engines.launch import arguments, environment, hardware
from pytest_speedbench.errors import EngineError, SettingsError

if TYPE_CHECKING:
    from pytest_speedbench.engines.control import Control
    from pytest_speedbench.settings.methods import Method
    from pytest_speedbench.settings.target import Target

_ALGORITHM = {
    "ngram": "NGRAM",
    "draft_model": "STANDALONE",
    "eagle": "EAGLE",
    "eagle3": "EAGLE3",
    "mtp": "NEXTN",
    "dflash": "DFLASH",
}
_ALSO_KNOWN_AS = {"NEXTN": ("EAGLE", "FROZEN_KV_MTP"), "EAGLE": ("NEXTN", "FROZEN_KV_MTP")}
"""What a server says that was launched with an algorithm: some are names for the same thing."""
_ONE_PASS = frozenset({"ngram", "dflash"})
"""Methods that draft all tokens at once; the others draft one a step, and may draft a tree."""

_TOPK = "--speculative-eagle-topk"
_TREE_SIZE = "--speculative-num-draft-tokens"
_OWNED = {
    "--model-path": "use --speedbench-model",
    "--model": "use --speedbench-model",
    "--host": "the plugin chooses where the server listens",
    "--port": "the plugin chooses where the server listens",
    "--api-key": "the plugin calls the server without a key",
    "--admin-api-key": "the plugin calls the server without a key",
    "--stream-output": "loses tokens of the stream when they come fast",
    "--skip-tokenizer-init": "a later turn of a chat needs the text of the reply to the turn before it",
    "--speculative-algorithm": "use --speedbench-method",
    "--speculative-algo": "use --speedbench-method",
    "--speculative-draft-model-path": "use --speedbench-draft-model",
    "--speculative-draft-model": "use --speedbench-draft-model",
    "--speculative-num-steps": "use --speedbench-draft-length",
    "--speculative-dflash-block-size": "use --speedbench-draft-length",
}
"""Launch arguments that a target may not give, and what to do instead."""
_LOSSY = ("--speculative-accept-threshold-single", "--speculative-accept-threshold-acc")
_FAKING = {"SGLANG_SIMULATE_ACC_LEN": -1.0, "SIMULATE_ACC_LEN": -1.0}
"""Variables that make acceptance up, present and former name, and the number at which they do nothing."""

_PARALLEL = {
    "--tensor-parallel-size": "tensor",
    "--tp-size": "tensor",
    "--tp": "tensor",
    "--pipeline-parallel-size": "pipeline",
    "--pp-size": "pipeline",
    "--pp": "pipeline",
    "--data-parallel-size": "data",
    "--dp-size": "data",
    "--dp": "data",
}

_FLUSH_S = 30
"""How long a server may take to become idle, in seconds."""

_LOOK = """
import importlib.util, json, pathlib
spec = importlib.util.find_spec("sglang")
told = {"importable": bool(spec and spec.origin), "module": False, "deltas": False}
if told["importable"]:
    package = pathlib.Path(spec.origin).parent
    told["module"] = (package / "launch_server.py").is_file()
    options = [package / "srt" / "server_args.py", *(package / "srt" / "arg_groups" / "fields").glob("*.py")]
    told["deltas"] = any("incremental_streaming_output" in path.read_text("utf-8") for path in options if path.is_file())
print(json.dumps(told))
"""
"""Run by the engine's interpreter, where importing SGLang itself would take ten seconds. What a version knows is
read from its source, for a development version's number does not tell."""


class SglangEngine(Engine):
    """An SGLang server for one target: launched, or attached to where the target has a URL."""

    name = "sglang"
    methods: ClassVar[Collection[Method | str]] = ("none", *_ALGORITHM)
    counts_per_request = True

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._told: Mapping[str, Any] | None = None

    def check(self) -> None:
        """Refuse a target that cannot be launched.

        Raises:
            SettingsError: one line naming the option, its value and what is allowed.
        """
        target = self.target
        method = self.method
        if target.url is not None:
            return
        arguments.refuse_models(target, method)
        arguments.refuse_owned(self._flags(), _OWNED)
        for flag, value in self._flags():
            if flag in _LOSSY and not environment.is_number(value, 1.0):
                raise SettingsError(
                    f"--speedbench-engine-arg={flag}={value}: accepts drafts that the target model would not have "
                    "written, and so cannot be measured; allowed is 1.0"
                )
        if target.method != "none":
            self._check_tree()
            environment.refuse_faking(target, _FAKING)
        _ = self._installed

    def _check_tree(self) -> None:
        """A tree's size is the user's to choose, and has to be chosen; that of a chain follows from its length."""
        given = dict(self._flags())
        has_size = _TREE_SIZE in given
        if self._drafts_tree and not has_size:
            raise SettingsError(
                f"--speedbench-engine-arg={_TOPK}={given[_TOPK]}: drafts a tree; add "
                f"--speedbench-engine-arg={_TREE_SIZE}=N, the number of its tokens"
            )
        if has_size and not self._drafts_tree:
            raise SettingsError(
                f"--speedbench-engine-arg={_TREE_SIZE}: use --speedbench-draft-length; "
                f"allowed with {_TOPK} above 1, which drafts a tree"
            )

    @property
    def _drafts_tree(self) -> bool:
        topk = dict(self._flags()).get(_TOPK, "1")
        return self.target.method not in _ONE_PASS and not environment.is_number(topk, 1.0)

    def launch(self, port: int) -> Launch:
        """The command that serves the target on 127.0.0.1:`port`."""
        target, installed = self.target, self._installed
        command = [arguments.interpreter(target.engine_python, "sglang")]
        if installed["module"]:
            command += ["-m", "sglang.launch_server"]
        else:
            command += ["-c", "from sglang.cli.main import main; main()", "serve"]
        command += ["--model-path", os.path.expanduser(str(target.model))]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        command += ["--disable-radix-cache", "--random-seed", "0"]
        if installed["deltas"]:
            # Otherwise every event repeats the whole output: a thousand tokens would be half a million.
            command += ["--incremental-streaming-output"]
        command += self._speculation()
        # Else a health check generates a token, for which the server takes at least a second.
        return Launch((*command, *target.engine_args), {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0"})

    def _speculation(self) -> list[str]:
        target = self.target
        if target.method == "none":
            return []
        arguments = ["--speculative-algorithm", _ALGORITHM[target.method]]
        if target.draft_model is not None:
            arguments += ["--speculative-draft-model-path", os.path.expanduser(target.draft_model)]
        if target.method not in _ONE_PASS:
            arguments += ["--speculative-num-steps", str(target.draft_length)]
        if self._drafts_tree:
            return arguments
        if target.method not in _ONE_PASS:
            arguments += [_TOPK, "1"]
        # It counts the token that the target model adds to the draft.
        return [*arguments, _TREE_SIZE, str(target.draft_length + 1)]

    def call(self, generation: Generation) -> HttpCall:
        """Encode one streaming generation: token ids to `/generate`, messages to `/v1/chat/completions`."""
        # A server may have defaults of its own for all of these.
        neutral = {
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
        }
        if generation.token_ids is None:
            asked = {
                "return_spec_tokens_details": True,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True},
                "return_token_ids": False,  # refused in a chat's stream
            }
            return openai_wire.completion_call(generation, self._model, {**neutral, **asked})
        sampling = generation.sampling
        parameters = {
            "max_new_tokens": sampling.output_length,
            "temperature": sampling.temperature,
            "top_p": 1.0,
            "ignore_eos": sampling.ignore_eos,
            **neutral,
        }
        body = {"input_ids": generation.token_ids, "sampling_params": parameters, "stream": True}
        return HttpCall("/generate", json.dumps(body).encode())

    def read(self, events: Sequence[bytes]) -> Reply:
        """Decode the `data:` payloads of one response stream.

        Raises:
            EngineError: the stream carries an error, was aborted, or ends before its generation did.
        """
        chunks = openai_wire.decode_events(events, sglang_wire.Event)
        draft_length = self.target.draft_length
        if any(chunk.choices is not None for chunk in chunks):
            return sglang_wire.read_chat(chunks, draft_length)
        return sglang_wire.read_generate(chunks, draft_length)

    def tokenize(self, control: Control, messages: Sequence[Message]) -> tuple[int, ...] | None:
        """Token ids of a chat, template and generation prompt applied once; None where the server cannot."""
        # Before it took messages, `/tokenize` wanted a `prompt`, and says so with 400.
        return openai_wire.tokenize(control, messages, self._model, absent=(400, 404, 405, 422))

    def reset(self, control: Control) -> None:
        """Flush the cache: the n-gram drafter remembers the outputs of all requests before, and forgets by this.

        Waits until the server is idle, for until then it refuses.

        Raises:
            EngineError: it was not idle in time, or cannot be measured as it was started.
        """
        import time

        self._meet(control)
        give_up = time.monotonic() + _FLUSH_S
        while True:
            # Versions that do not know `timeout` refuse at once.
            response = control.post(f"/flush_cache?timeout={_FLUSH_S}")
            if response.status_code == 200:
                return
            if time.monotonic() >= give_up:
                raise EngineError(
                    f"POST {control.url}/flush_cache answered {response.status_code} for {_FLUSH_S} s: "
                    f"{response.text[:200].strip()}; does anybody else use the server?"
                )
            time.sleep(0.1)

    def requests_at_once(self, control: Control) -> int:
        """Requests computed at once: with speculation 48, unless `--max-running-requests` says otherwise."""
        told = self._meet(control)
        # One of these for each rank of data parallelism.
        ranks = [
            state.get("effective_max_running_requests_per_dp") for state in told.get("internal_states") or ()
        ]
        bounds = ranks if ranks and all(ranks) else [told.get("max_running_requests")]
        return sum(int(bound or sys.maxsize) for bound in bounds)

    def version(self, control: Control) -> str:
        """Version of the SGLang that is running."""
        return str(self._meet(control).get("version", "unknown"))

    def hardware(self, control: Control) -> Hardware:
        """What SGLang computes on; of a server on another machine only its address is known."""
        target = self.target
        if target.url is not None:
            return hardware.attached(target)
        given = dict(self._flags())
        if given.get("--device") == "cpu":
            return hardware.launched((), 1)
        # Attention in data parallel divides the devices of the tensor dimension, and adds none.
        shared = "--enable-dp-attention" in given
        dimensions = {flag: size for flag, size in _PARALLEL.items() if not (shared and size == "data")}
        names = hardware.accelerators(
            arguments.interpreter(target.engine_python, "sglang"), environment.environment_of(target)
        )
        return hardware.launched(names, arguments.parallel_size(self._flags(), dimensions))

    def _flags(self) -> Iterator[tuple[str, str]]:
        return arguments.flags(self.target.engine_args)

    @property
    def _model(self) -> str:
        """The name in requests; SGLang serves one model and takes any."""
        return str((self._told or {}).get("served_model_name") or self.target.model or "default")

    @cached_property
    def _installed(self) -> Mapping[str, Any]:
        python = arguments.interpreter(self.target.engine_python, "sglang")
        told = arguments.ask(python, _LOOK)
        if not told["importable"]:
            raise arguments.not_installed("sglang", "SGLang", python)
        return told

    def _meet(self, control: Control) -> Mapping[str, Any]:
        """How the server says it was started, refused where it cannot be measured like that."""
        if self._told is None:
            path = "/server_info"
            if control.get(path).status_code == 404:
                path = "/get_server_info"  # its name before 0.5.6
            told: Mapping[str, Any] = control.get_json(path)
            refuse_lossy(told, control.url)
            if self.target.url is not None:
                refuse_other_server(told, self.target, control.url)
            self._told = told
        return self._told


def refuse_lossy(told: Mapping[str, Any], url: str) -> None:
    """Refuse a server that accepts drafts loosely: a launched one too may have it from a `--config` file.

    Args:
        told: its `/server_info`.
        url: where it is.

    Raises:
        EngineError: one line naming the argument.
    """
    for flag in _LOSSY:
        threshold = told.get(flag[2:].replace("-", "_"))
        if threshold not in (None, 1, 1.0):
            raise EngineError(
                f"the server at {url} was started with {flag}={threshold}, which accepts drafts that the target model "
                "would not have written, and so cannot be measured"
            )


def refuse_other_server(told: Mapping[str, Any], target: Target, url: str) -> None:
    """Refuse a running server that is not what the target says, or that cannot be measured.

    Args:
        told: its `/server_info`.
        target: what it is said to be.
        url: where it is.

    Raises:
        EngineError: one line that says what differs.
    """
    where = f"the server at {url}"
    served = [str(told[key]) for key in ("model_path", "served_model_name") if told.get(key)]
    if target.model is not None and served and target.model not in served:
        raise EngineError(f"--speedbench-model={target.model}: {where} serves {served[0]}")
    if told.get("disable_radix_cache") is False:
        raise EngineError(
            f"{where} keeps a prefix cache, which would be measured instead of the engine; "
            "start it with --disable-radix-cache"
        )
    if told.get("stream_output"):
        raise EngineError(
            f"{where} was started with --stream-output, which loses tokens of the stream when they come fast; "
            "start it without"
        )
    if "speculative_algorithm" not in told:
        return
    runs, wanted = told["speculative_algorithm"], _ALGORITHM.get(target.method)
    if runs != wanted and runs not in _ALSO_KNOWN_AS.get(str(wanted), ()):
        runs_what = f"runs speculative algorithm {runs}" if runs else "drafts nothing"
        raise EngineError(f"--speedbench-method={target.method}: {where} {runs_what}")
    if wanted is None:
        return
    steps, tokens = told.get("speculative_num_steps"), told.get("speculative_num_draft_tokens")
    drafts = steps if target.method not in _ONE_PASS else tokens - 1 if tokens else None
    if drafts not in (None, target.draft_length):
        raise EngineError(f"--speedbench-draft-length={target.draft_length}: {where} drafts {drafts} tokens")
