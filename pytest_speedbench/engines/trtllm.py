"""TensorRT-LLM: `trtllm-serve` with a generated `--config`, measured by its responses or by Prometheus.

Tested against its documented interface, not run: it needs a GPU, which this project's CI does not have. What is
written here was read in its sources and documentation.

- Each choice of a response tells `avg_decoded_tokens_per_iter`: output tokens over iterations, prefill being one
  of these. Iterations less one are all decode steps, drafted or not.
- A version with `speculative_decoding` in its choices tells the histogram of accepted drafts as well.
- `GET /prometheus/metrics` counts drafted and accepted tokens by position for the server as a whole, where
  `return_perf_metrics` is on. Position 0 is drafted once for each step that drafts.
- `GET /metrics` is emptied by whoever reads it, and forgets what lies 1000 iterations back: it is not read.

Requests with a field that it does not know are refused, so that bodies hold documented fields only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pytest_speedbench.engines.base import (
    Counters,
    Engine,
    Generation,
    Hardware,
    HttpCall,
    Launch,
    Reply,
)
from pytest_speedbench.engines.launch import arguments, environment, hardware
from pytest_speedbench.engines.openai_wire import (
    Choice,
    Chunk,
    SpeculativeDecoding,
    decode_events,
    read_chunks,
)
from pytest_speedbench.errors import EngineError, SettingsError
from pytest_speedbench.settings.methods import METHODS, Method

if TYPE_CHECKING:
    from pytest_speedbench.engines.control import Control
    from pytest_speedbench.settings.target import Target

_PROGRAM = "trtllm-serve"
_DECODING_TYPES = {"ngram": "NGram", "draft_model": "DraftTarget", "eagle3": "Eagle3", "mtp": "MTP"}
_NO_OVERLAP = frozenset({"ngram", "draft_model"})
"""Methods that the overlap scheduler cannot run."""

_CHOSEN = "the plugin chooses where the server listens"
_OWNED = {
    "--host": _CHOSEN,
    "--port": _CHOSEN,
    "--model": "use --speedbench-model",
}
"""Launch arguments that a target may not give, and what to do instead."""
_CONFIG_FLAGS = ("--config", "--extra-llm-api-options")
_FAKING = {"TLLM_SPEC_DECODE_FORCE_NUM_ACCEPTED_TOKENS": 0.0}
"""Variables that make acceptance up, and the number at which they do nothing."""
_LOSSY: Mapping[str, tuple[object, ...]] = {
    "use_relaxed_acceptance_for_thinking": (False,),
    "relaxed_topk": (1,),
    "relaxed_delta": (0,),
    "posterior_threshold": (),
    "acceptance_rate_threshold": (),
}
"""Fields of `speculative_config` that accept drafts which the target model would not have written, or stop drafting
when acceptance falls, and their values that do neither."""
_PARALLEL = {"--tp-size": "tensor", "--pp-size": "pipeline"}

_SAMPLE = re.compile(
    r"^trtllm_spec_decode_(?P<what>drafted|accepted)_tokens_total\{(?P<labels>.*)\}\s+(?P<value>\S+)",
    re.MULTILINE,
)
_POSITION = re.compile(r'(?:^|,)\s*token_position="(\d+)"')
_ROUNDING = 0.01
"""Iterations are told as a quotient in single precision; at 4096 tokens that is off by 0.0005 at most."""


class _Choice(Choice, gc=False):
    """What TensorRT-LLM adds to a choice."""

    avg_decoded_tokens_per_iter: float | None = None
    speculative_decoding: SpeculativeDecoding | None = None


class _Chunk(Chunk, gc=False):
    choices: Sequence[_Choice] | None = None


class TensorRtLlmEngine(Engine):
    """A TensorRT-LLM server for one target: launched, or attached to where the target has a URL.

    A launch argument `--config=FILE` is taken as the base of the generated configuration.
    """

    name = "trtllm"
    methods: ClassVar[Collection[Method | str]] = (
        "none",
        "ngram",
        "draft_model",
        "eagle3",
        replace(METHODS["mtp"], draft_model="none"),
    )

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._served_model = ""
        self._counts_per_request = False

    @property
    def counts_per_request(self) -> bool:
        """Whether responses tell decode steps: known once the server was spoken to."""
        return self._counts_per_request

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
        arguments.refuse_owned(arguments.flags(target.engine_args), _OWNED)
        if target.method != "none":
            environment.refuse_faking(target, _FAKING)
        _program(target)
        _config(target)

    def launch(self, port: int) -> Launch:
        """The command that serves the target on 127.0.0.1:`port`, and its configuration."""
        import yaml

        target = self.target
        command = [_program(target), os.path.expanduser(str(target.model))]
        command += ["--host", "127.0.0.1", "--port", str(port), "--config", "{config.yaml}"]
        _, arguments = _split(target.engine_args)
        text = yaml.safe_dump(_config(target), sort_keys=False)
        return Launch((*command, *arguments), files={"config.yaml": text})

    def call(self, generation: Generation) -> HttpCall:
        """Encode one streaming generation: token ids, or messages where there is no tokenizer."""
        sampling = generation.sampling
        body: dict[str, Any] = {
            "model": self._served_model,
            "max_tokens": sampling.output_length,
            "temperature": sampling.temperature,
            "top_p": 1.0,
            "seed": sampling.seed,
            "ignore_eos": sampling.ignore_eos,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        if generation.token_ids is not None:
            path = "/v1/completions"
            body |= {"prompt": list(generation.token_ids), "add_special_tokens": False}
        else:
            path = "/v1/chat/completions"
            chat = generation.messages or ()
            body["messages"] = [{"role": message.role, "content": message.content} for message in chat]
        return HttpCall(path, json.dumps(body).encode())

    def read(self, events: Sequence[bytes]) -> Reply:
        """Decode the `data:` payloads of one response stream, `[DONE]` left out.

        Raises:
            EngineError: as `openai_wire.read_stream`; or the iterations told do not fit the output.
        """
        chunks = decode_events(events, _Chunk)
        reply = read_chunks(chunks)
        told = _Choice()
        for choice in (choice for chunk in chunks for choice in chunk.choices or ()):
            told.avg_decoded_tokens_per_iter = (
                choice.avg_decoded_tokens_per_iter or told.avg_decoded_tokens_per_iter
            )
            told.speculative_decoding = choice.speculative_decoding or told.speculative_decoding
        return replace(reply, counters=self._counters(told, reply.output_tokens))

    def server_counters(self, control: Control) -> Counters | None:
        """Counters since the server's start; None where it has no `/prometheus/metrics` or drafts nothing."""
        response = control.get("/prometheus/metrics")
        if response.status_code != 200 or self.target.method == "none":
            return None
        by_position: dict[str, Counter[int]] = {"drafted": Counter(), "accepted": Counter()}
        for sample in _SAMPLE.finditer(response.text):
            if position := _POSITION.search(sample["labels"]):
                by_position[sample["what"]][int(position[1])] += int(float(sample["value"]))
        drafted, accepted = by_position["drafted"], by_position["accepted"]
        # Before the first draft there is no sample; the metric itself is declared then.
        if not drafted and "trtllm_spec_decode_drafted_tokens" not in response.text:
            return None
        length = max(drafted, default=-1) + 1
        return Counters(
            source="prometheus",
            drafted_steps=drafted[0],
            drafted_tokens=sum(drafted.values()),
            accepted_tokens=sum(accepted.values()),
            accepted_per_position=tuple(accepted[position] for position in range(length)),
            draft_length=length,
        )

    def version(self, control: Control) -> str:
        """Version of the TensorRT-LLM that is running. Learns its model and counters, for this is asked first."""
        models = control.get_json("/v1/models")["data"]
        self._served_model = str(models[0]["id"])
        if self.target.method != "none":
            trial = {"model": self._served_model, "prompt": "1", "max_tokens": 2, "temperature": 0.0}
            choice = control.post_json("/v1/completions", trial)["choices"][0]
            self._counts_per_request = choice.get("avg_decoded_tokens_per_iter") is not None
        return str(control.get_json("/version")["version"])

    def hardware(self, control: Control) -> Hardware:
        """The accelerators of this machine that it was told to use; of an attached server, its machine's."""
        if self.target.url is not None:
            return hardware.attached(self.target)
        count = arguments.parallel_size(arguments.flags(self.target.engine_args), _PARALLEL)
        return hardware.launched(
            hardware.accelerators(environment=environment.environment_of(self.target)), count
        )

    def _counters(self, told: _Choice, output_tokens: int) -> Counters | None:
        mean = told.avg_decoded_tokens_per_iter
        if self.target.method == "none" or not mean or output_tokens < 1:
            return None
        iterations = round(output_tokens / mean)
        if abs(output_tokens / mean - iterations) > _ROUNDING:
            raise EngineError(
                f"avg_decoded_tokens_per_iter={mean} is no quotient of {output_tokens} output tokens: "
                "this version of TensorRT-LLM counts otherwise than documented"
            )
        steps = iterations - 1
        histogram = (told.speculative_decoding or SpeculativeDecoding()).acceptance_histogram or ()
        return Counters(
            source="response",
            drafted_steps=sum(histogram) if histogram else None,
            drafted_tokens=None,
            accepted_tokens=(
                sum(accepted * count for accepted, count in enumerate(histogram))
                if histogram
                else output_tokens - 1 - steps
            ),
            accepted_per_position=tuple(sum(histogram[position:]) for position in range(1, len(histogram))),
            draft_length=self.target.draft_length,
            decode_steps=steps,
        )


def _program(target: Target) -> str:
    """`trtllm-serve` beside the chosen interpreter, or on PATH."""
    if target.engine_python is None:
        found = shutil.which(_PROGRAM)
    else:
        found = shutil.which(_PROGRAM, path=str(Path(target.engine_python).parent))
    if found is None:
        where = f"beside {target.engine_python}" if target.engine_python else "on PATH"
        raise SettingsError(
            f"--speedbench-engine=trtllm: there is no {_PROGRAM} {where}; pip install tensorrt-llm, "
            "or name the interpreter that has it with --speedbench-engine-python"
        )
    return found


def _config(target: Target) -> dict[str, Any]:
    """The configuration: the user's own, and over it what a measurement needs."""
    config = _own_config(target)
    cache = dict(config.get("kv_cache_config") or {})
    config |= {"return_perf_metrics": True, "kv_cache_config": cache | {"enable_block_reuse": False}}
    speculative = dict(config.pop("speculative_config", None) or {})
    if target.method == "none":
        return config
    for field, harmless in _LOSSY.items():
        value = speculative.get(field)
        if value is not None and value not in harmless:
            path, _ = _split(target.engine_args)
            raise SettingsError(
                f"--speedbench-engine-arg=--config={path}: speculative_config.{field}: {value} changes what is accepted "
                "or drafted, and so cannot be measured; leave it out"
            )
    speculative |= {"decoding_type": _DECODING_TYPES[target.method], "max_draft_len": target.draft_length}
    if target.draft_model is not None:
        speculative["speculative_model"] = os.path.expanduser(target.draft_model)
    if target.method == "ngram":
        speculative["is_public_pool"] = False  # it would draft from other requests
    if target.method in _NO_OVERLAP:
        config["disable_overlap_scheduler"] = True
    return config | {"speculative_config": speculative}


def _own_config(target: Target) -> dict[str, Any]:
    path, _ = _split(target.engine_args)
    if path is None:
        return {}
    import yaml

    where = f"--speedbench-engine-arg=--config={path}"
    try:
        config = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{where}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{where}: is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise SettingsError(f"{where}: holds no mapping")
    return config


def _split(engine_args: Sequence[str]) -> tuple[str | None, list[str]]:
    """Part the user's own configuration file from the other arguments."""
    path: str | None = None
    others: list[str] = []
    arguments = iter(engine_args)
    for argument in arguments:
        flag, assigned, value = argument.partition("=")
        if flag.replace("_", "-") in _CONFIG_FLAGS:
            path = value if assigned else next(arguments, "")
        else:
            others.append(argument)
    return path, others
