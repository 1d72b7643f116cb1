"""TensorRT-LLM, which is not run here: what is launched, and what is read from a server that answers as documented."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_speedbench.engines.base import Counters, Generation, Message
from pytest_speedbench.engines.trtllm import TensorRtLlmEngine
from pytest_speedbench.errors import EngineError, SettingsError
from pytest_speedbench.metrics.acceptance import count_steps, inconsistency
from pytest_speedbench.settings.target import Sampling, Target
from tests.engines.answering_server import Answers, answering

MODELS = {"GET /v1/models": (200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})}
VERSION = {"GET /version": (200, {"version": "1.3.0"})}
PROMETHEUS = """\
# HELP trtllm_spec_decode_drafted_tokens_total Draft tokens by position
# TYPE trtllm_spec_decode_drafted_tokens_total counter
trtllm_spec_decode_drafted_tokens_total{model_name="tiny",engine_type="trtllm",token_position="0"} 100.0
trtllm_spec_decode_drafted_tokens_total{model_name="tiny",engine_type="trtllm",token_position="1"} 100.0
trtllm_spec_decode_drafted_tokens_total{model_name="tiny",engine_type="trtllm",token_position="2"} 90.0
# TYPE trtllm_spec_decode_accepted_tokens_total counter
trtllm_spec_decode_accepted_tokens_total{model_name="tiny",engine_type="trtllm",token_position="0"} 70.0
trtllm_spec_decode_accepted_tokens_total{model_name="tiny",engine_type="trtllm",token_position="1"} 40.0
# TYPE trtllm_spec_decode_acceptance_length gauge
trtllm_spec_decode_acceptance_length{model_name="tiny",engine_type="trtllm"} 1.0
"""

Install = Callable[..., Target]


@pytest.fixture
def target(tmp_path: Path) -> Install:
    """A target whose interpreter has a stub of trtllm-serve beside it."""
    program = tmp_path / "bin" / "trtllm-serve"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)

    def make(method: str = "none", **fields: Any) -> Target:
        fields = {
            "draft_length": 0 if method == "none" else 3,
            "model": "org/tiny",
            "draft_model": "org/draft" if method in ("draft_model", "eagle3") else None,
            "engine_python": str(tmp_path / "bin" / "python"),
            **fields,
        }
        return Target(name="t", engine="trtllm", method=method, **fields)

    return make


def config(target: Target) -> Any:
    engine = TensorRtLlmEngine(target)
    engine.check()
    return yaml.safe_load(engine.launch(8123).files["config.yaml"])


def refusal(target: Target) -> str:
    with pytest.raises(SettingsError) as caught:
        TensorRtLlmEngine(target).check()
    return str(caught.value)


def attached(method: str = "eagle3") -> TensorRtLlmEngine:
    return TensorRtLlmEngine(
        Target(name="t", engine="trtllm", method=method, draft_length=3, url="http://127.0.0.1:9")
    )


def stream(tokens_per_event: list[int], **last_choice: Any) -> list[bytes]:
    """As the server streams with `continuous_usage_stats`; what it tells of the whole comes with the last text."""
    events = []
    delivered = 0
    for number, tokens in enumerate(tokens_per_event, start=1):
        delivered += tokens
        last = number == len(tokens_per_event)
        choice = {"index": 0, "text": "word " * tokens, "token_ids": None, "finish_reason": None}
        choice |= {"finish_reason": "length", **last_choice} if last else {}
        usage = {"prompt_tokens": 5, "completion_tokens": delivered, "total_tokens": 5 + delivered}
        events.append({"object": "text_completion", "model": "tiny", "choices": [choice], "usage": usage})
    events.append({"object": "text_completion", "model": "tiny", "choices": [], "usage": events[-1]["usage"]})
    return [json.dumps(event).encode() for event in events]


class TestLaunch:
    def test_names_its_generated_configuration(self, target: Install, tmp_path: Path) -> None:
        launch = TensorRtLlmEngine(target(engine_args=("--tp_size=2",))).launch(8123)
        assert launch.command == (
            *(str(tmp_path / "bin" / "trtllm-serve"), "org/tiny", "--host", "127.0.0.1", "--port", "8123"),
            *("--config", "{config.yaml}", "--tp_size=2"),
        )

    def test_without_speculation_nothing_is_reused_all_the_same(self, target: Install) -> None:
        assert config(target()) == {
            "return_perf_metrics": True,
            "kv_cache_config": {"enable_block_reuse": False},
        }

    @pytest.mark.parametrize(
        ("method", "speculative"),
        [
            ("eagle3", {"decoding_type": "Eagle3", "max_draft_len": 3, "speculative_model": "org/draft"}),
            ("mtp", {"decoding_type": "MTP", "max_draft_len": 3}),
            ("ngram", {"decoding_type": "NGram", "max_draft_len": 3, "is_public_pool": False}),
            (
                "draft_model",
                {"decoding_type": "DraftTarget", "max_draft_len": 3, "speculative_model": "org/draft"},
            ),
        ],
    )
    def test_speculative_config_of_each_method(
        self, target: Install, method: str, speculative: dict[str, Any]
    ) -> None:
        generated = config(target(method))
        assert generated["speculative_config"] == speculative
        assert generated.get("disable_overlap_scheduler", False) is (method in ("ngram", "draft_model"))

    @pytest.mark.parametrize("given", ["--config={}", "--extra_llm_api_options={}"])
    def test_a_configuration_of_the_users_is_the_base(
        self, target: Install, tmp_path: Path, given: str
    ) -> None:
        own = tmp_path / "own.yaml"
        own.write_text(
            "kv_cache_config: {free_gpu_memory_fraction: 0.5, enable_block_reuse: true}\n"
            "speculative_config: {decoding_type: NGram, max_draft_len: 9, max_matching_ngram_size: 4}\n"
        )
        generated = config(target("ngram", engine_args=(given.format(own), "--tp_size=2")))
        assert generated["kv_cache_config"] == {"free_gpu_memory_fraction": 0.5, "enable_block_reuse": False}
        assert generated["speculative_config"] == {
            "decoding_type": "NGram",
            "max_draft_len": 3,
            "max_matching_ngram_size": 4,
            "is_public_pool": False,
        }
        assert "speculative_config" not in config(target(engine_args=("--config", str(own))))


class TestRefuses:
    def test_engine_that_is_not_installed(self, target: Install, tmp_path: Path) -> None:
        python = str(tmp_path / "other" / "python")
        assert refusal(target(engine_python=python)) == (
            f"--speedbench-engine=trtllm: there is no trtllm-serve beside {python}; pip install tensorrt-llm, "
            "or name the interpreter that has it with --speedbench-engine-python"
        )

    def test_method_that_it_has_not(self, target: Install) -> None:
        assert "engine trtllm has draft_model, eagle3, mtp, ngram, none" in refusal(target("suffix"))

    def test_configuration_that_cannot_be_read(self, target: Install, tmp_path: Path) -> None:
        assert refusal(target(engine_args=("--config=/nowhere.yaml",))) == (
            "--speedbench-engine-arg=--config=/nowhere.yaml: No such file or directory"
        )
        broken = tmp_path / "broken.yaml"
        broken.write_text("a: [")
        assert "is no YAML" in refusal(target(engine_args=(f"--config={broken}",)))
        broken.write_text("- a")
        assert "holds no mapping" in refusal(target(engine_args=(f"--config={broken}",)))

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("use_relaxed_acceptance_for_thinking", True),
            ("relaxed_topk", 10),
            ("relaxed_delta", 0.6),
            ("posterior_threshold", 0.1),
            ("acceptance_rate_threshold", 0.2),
        ],
    )
    def test_relaxed_acceptance_in_the_configuration(
        self, target: Install, tmp_path: Path, field: str, value: object
    ) -> None:
        own = tmp_path / "own.yaml"
        own.write_text(yaml.safe_dump({"speculative_config": {field: value}}))
        assert refusal(target("mtp", engine_args=(f"--config={own}",))) == (
            f"--speedbench-engine-arg=--config={own}: speculative_config.{field}: {value} changes what is accepted or "
            "drafted, and so cannot be measured; leave it out"
        )
        config(target("none", engine_args=(f"--config={own}",)))
        own.write_text("speculative_config: {relaxed_topk: 1, use_relaxed_acceptance_for_thinking: false}")
        config(target("mtp", engine_args=(f"--config={own}",)))

    def test_acceptance_forced_by_the_environment(
        self, target: Install, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        forced = "TLLM_SPEC_DECODE_FORCE_NUM_ACCEPTED_TOKENS"
        assert refusal(target("eagle3", environment={forced: "2"})) == (
            f"{forced}=2 in env: of the target fakes acceptance, and so cannot be measured; unset it"
        )
        monkeypatch.setenv(forced, "1.5")
        assert refusal(target("eagle3")).startswith(f"{forced}=1.5 in the environment fakes acceptance")
        monkeypatch.setenv(forced, "0")
        config(target("eagle3"))

    def test_arguments_that_are_the_plugins(self, target: Install) -> None:
        assert refusal(target(engine_args=("--port=1",))).startswith("--speedbench-engine-arg=--port: ")


class TestCall:
    DOCUMENTED = frozenset(
        {
            *("model", "prompt", "messages", "max_tokens", "temperature", "top_p", "seed", "ignore_eos"),
            *("stream", "stream_options", "add_special_tokens"),
        }
    )

    def test_token_ids_are_the_whole_prompt(self) -> None:
        call = attached().call(Generation(Sampling.exactly(64), token_ids=(0, 5)))
        body = json.loads(call.body)
        assert (call.path, body["prompt"], body["add_special_tokens"]) == ("/v1/completions", [0, 5], False)
        assert set(body) <= self.DOCUMENTED, "any other field is refused"

    def test_messages_go_to_its_own_template(self) -> None:
        call = attached().call(Generation(Sampling.exactly(64), messages=(Message("user", "Hello"),)))
        body = json.loads(call.body)
        assert (call.path, body["messages"]) == (
            "/v1/chat/completions",
            [{"role": "user", "content": "Hello"}],
        )
        assert set(body) <= self.DOCUMENTED


class TestRead:
    def test_decode_steps_from_tokens_per_iteration_of_which_one_is_prefill(self) -> None:
        """10 tokens: prefill's, then steps of 4, 3 and 2."""
        reply = attached().read(stream([1, 4, 3, 2], avg_decoded_tokens_per_iter=10 / 4))
        assert (reply.output_tokens, reply.tokens_per_event) == (10, (1, 4, 3, 2, 0))
        assert reply.counters == Counters("response", None, None, 6, (), 3, decode_steps=3)
        assert inconsistency("eagle3", 10, reply.counters) is None
        assert count_steps("eagle3", 10, reply.counters).steps == 3

    @given(output_tokens=st.integers(2, 4096), share=st.floats(0, 1))
    @settings(max_examples=50, deadline=None)
    def test_a_quotient_in_single_precision_is_good_enough(self, output_tokens: int, share: float) -> None:
        iterations = 2 + round(share * (output_tokens - 2))
        single: float = struct.unpack("f", struct.pack("f", output_tokens / iterations))[0]
        reply = attached().read(stream([output_tokens], avg_decoded_tokens_per_iter=single))
        assert reply.counters is not None and reply.counters.decode_steps == iterations - 1

    def test_a_version_that_tells_the_histogram(self) -> None:
        """The last of the three steps had 3 drafts accepted, of which one was past the end."""
        told = {"num_spec_steps": 3, "acceptance_histogram": [0, 0, 1, 2]}
        reply = attached().read(
            stream([1, 4, 3, 3], avg_decoded_tokens_per_iter=11 / 4, speculative_decoding=told)
        )
        assert reply.counters == Counters("response", 3, None, 8, (3, 3, 2), 3, decode_steps=3)
        assert inconsistency("eagle3", 11, reply.counters) is None

    def test_a_quotient_that_cannot_be_is_an_error_and_no_number(self) -> None:
        with pytest.raises(EngineError, match=r"avg_decoded_tokens_per_iter=2.3 is no quotient of 10 output"):
            attached().read(stream([1, 4, 3, 2], avg_decoded_tokens_per_iter=2.3))

    def test_without_it_a_response_has_no_counters(self) -> None:
        assert attached().read(stream([1, 4], avg_decoded_tokens_per_iter=None)).counters is None
        assert attached("none").read(stream([1, 1], avg_decoded_tokens_per_iter=1.0)).counters is None


class TestServer:
    @pytest.mark.parametrize(("mean", "per_request"), [(1.0, True), (None, False)])
    def test_learns_where_its_counters_are(self, mean: float | None, per_request: bool) -> None:
        choice = {"index": 0, "text": "a b", "finish_reason": "length", "avg_decoded_tokens_per_iter": mean}
        answers: Answers = {**MODELS, **VERSION, "POST /v1/completions": (200, {"choices": [choice]})}
        engine = attached()
        with answering(answers) as (control, _):
            assert engine.version(control) == "1.3.0"
        assert engine.counts_per_request is per_request
        assert (
            json.loads(engine.call(Generation(Sampling.exactly(8), token_ids=(1,))).body)["model"] == "tiny"
        )

    def test_counts_by_position_where_responses_do_not(self) -> None:
        with answering({"GET /prometheus/metrics": (200, PROMETHEUS)}) as (control, _):
            counters = attached().server_counters(control)
        assert counters == Counters("prometheus", 100, 290, 110, (70, 40, 0), 3)

    def test_counts_nothing_before_the_first_draft(self) -> None:
        declared = "# TYPE trtllm_spec_decode_drafted_tokens_total counter\n"
        with answering({"GET /prometheus/metrics": (200, declared)}) as (control, _):
            assert attached().server_counters(control) == Counters("prometheus", 0, 0, 0, (), 0)

    @pytest.mark.parametrize("answer", [(404, "Not Found"), (200, "trtllm_request_success_total 1\n")])
    def test_has_no_counters_where_the_version_has_none(self, answer: tuple[int, str]) -> None:
        with answering({"GET /prometheus/metrics": answer}) as (control, _):
            assert attached().server_counters(control) is None

    def test_never_reads_the_metrics_that_empty_themselves(self) -> None:
        with answering({"GET /prometheus/metrics": (200, PROMETHEUS)}) as (control, asked):
            attached().server_counters(control)
            attached().reset(control)
        assert "GET /metrics" not in asked
