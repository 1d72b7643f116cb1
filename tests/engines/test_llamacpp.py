"""llama.cpp: what is launched, what is refused, and what its streams tell.

The streams in `recorded/` are a real llama-server's (b1-0c1e570); `tests/real` runs one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench.engines.base import Counters, Generation, Hardware, Message
from pytest_speedbench.engines.llamacpp import LlamaCppEngine
from pytest_speedbench.errors import EngineError, SettingsError
from pytest_speedbench.metrics.acceptance import inconsistency
from pytest_speedbench.settings.target import Sampling, Target
from tests.engines.answering_server import answering

RECORDED = Path(__file__).parent / "recorded"
PROPS = {"total_slots": 8, "build_info": "b1-0c1e570", "model_path": "target.gguf"}

Install = Callable[..., str]
MakeTarget = Callable[..., Target]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Make a stub of llama-server, which knows --help and --list-devices."""

    def make(devices: str = "  (none)\n", help: str = "--spec-type TYPES  comma-separated list") -> str:
        program = tmp_path / "llama-server"
        program.write_text(
            f"""#!/bin/sh
case $1 in
--help) echo "{help}" ;;
--list-devices) printf 'Available devices:\\n{devices}' ;;
esac
"""
        )
        program.chmod(0o755)
        return str(program)

    return make


@pytest.fixture
def target(tmp_path: Path, install: Install) -> MakeTarget:
    for name in ("target.gguf", "draft.gguf"):
        (tmp_path / name).touch()

    def make(method: str = "none", **fields: Any) -> Target:
        fields = {
            "draft_length": 0 if method == "none" else 3,
            "model": str(tmp_path / "target.gguf"),
            "draft_model": str(tmp_path / "draft.gguf") if method in ("draft_model", "eagle3") else None,
            **fields,
        }
        if "engine_python" not in fields:
            fields["engine_python"] = install()
        return Target(name="t", engine="llamacpp", method=method, **fields)

    return make


def refusal(target: Target) -> str:
    with pytest.raises(SettingsError) as caught:
        LlamaCppEngine(target).check()
    return str(caught.value)


def recorded(name: str) -> list[bytes]:
    return (RECORDED / f"{name}.txt").read_bytes().splitlines()


def attached(method: str = "draft_model") -> LlamaCppEngine:
    return LlamaCppEngine(
        Target(name="t", engine="llamacpp", method=method, draft_length=3, url="http://127.0.0.1:9")
    )


class TestLaunch:
    def test_serves_on_this_machine_alone_and_without_a_prefix_cache(self, target: MakeTarget) -> None:
        made = target()
        command = LlamaCppEngine(made).launch(8123).command
        assert command == (
            str(made.engine_python),
            *("-m", str(made.model)),
            *("--host", "127.0.0.1", "--port", "8123"),
            *("--no-cache-prompt", "--cache-ram", "0", "--metrics", "--offline"),
            *("--parallel", "32"),
            *("--spec-type", "none"),
        )

    @pytest.mark.parametrize(
        ("method", "arguments"),
        [
            ("ngram", ("ngram-simple", "--spec-ngram-simple-size-m", "3")),
            ("draft_model", ("draft-simple", "--spec-draft-model", "{draft}", "--spec-draft-n-max", "3")),
            ("eagle3", ("draft-eagle3", "--spec-draft-model", "{draft}", "--spec-draft-n-max", "3")),
            ("mtp", ("draft-mtp", "--spec-draft-n-max", "3")),
        ],
    )
    def test_arguments_of_each_method(
        self, target: MakeTarget, tmp_path: Path, method: str, arguments: tuple[str, ...]
    ) -> None:
        engine = LlamaCppEngine(target(method))
        engine.check()
        command = engine.launch(8123).command
        expected = tuple(argument.format(draft=tmp_path / "draft.gguf") for argument in arguments)
        assert command[command.index("--spec-type") + 1 :] == expected

    def test_further_arguments_come_last_and_apart(self, target: MakeTarget) -> None:
        engine_args = ("--parallel=8", "--ctx-size", "65536", "-ot=blk=CPU")
        engine = LlamaCppEngine(target(engine_args=engine_args))
        engine.check()
        assert engine.launch(1).command[-6:] == ("--parallel", "8", "--ctx-size", "65536", "-ot", "blk=CPU")


class TestRefuses:
    def test_method_that_it_has_not(self, target: MakeTarget) -> None:
        assert refusal(target("suffix")) == (
            "--speedbench-method=suffix: engine llamacpp has dflash, draft_model, eagle3, mtp, ngram, none"
        )

    def test_no_model(self, target: MakeTarget) -> None:
        assert (
            refusal(target(model=None))
            == "--speedbench-engine=llamacpp needs --speedbench-model: a .gguf file"
        )

    def test_model_that_is_not_there(self, target: MakeTarget) -> None:
        assert refusal(target(model="org/name")) == (
            "--speedbench-model=org/name: there is no such file; llama.cpp takes a .gguf file"
        )

    def test_draft_model_that_is_missing_or_not_there(self, target: MakeTarget) -> None:
        assert "draft_model needs --speedbench-draft-model" in refusal(
            target("draft_model", draft_model=None)
        )
        assert "--speedbench-draft-model=x.gguf: there is no" in refusal(
            target("draft_model", draft_model="x.gguf")
        )

    @pytest.mark.parametrize(
        ("argument", "instead"),
        [
            ("--spec-draft-n-max=5", "use --speedbench-draft-length"),
            ("-md=x", "use --speedbench-draft-model"),
            ("--port=1", "the plugin chooses where the server listens"),
            ("--cache-prompt", "prompts are measured without a prefix cache"),
            ("--spec-synth-len=3", "fakes acceptance, and so cannot be measured"),
        ],
    )
    def test_arguments_that_are_the_plugins(self, target: MakeTarget, argument: str, instead: str) -> None:
        flag = argument.partition("=")[0]
        assert refusal(target(engine_args=(argument,))) == f"--speedbench-engine-arg={flag}: {instead}"

    def test_environment_that_fakes_acceptance(
        self, target: MakeTarget, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLAMA_ARG_SPEC_SYNTH_LEN", "3")
        assert refusal(target()) == (
            "LLAMA_ARG_SPEC_SYNTH_LEN=3 in the environment fakes acceptance, and so cannot be measured; unset it"
        )

    def test_no_server_on_path(self, target: MakeTarget, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        assert refusal(target(engine_python=None)) == (
            "--speedbench-engine=llamacpp: there is no llama-server on PATH; name it with "
            "--speedbench-engine-python, which takes that program instead of an interpreter"
        )

    def test_program_that_is_another(self, target: MakeTarget, install: Install) -> None:
        refused = refusal(target(engine_python=install(help="usage: python [option] ...")))
        assert "is no llama-server whose --help lists --spec-type" in refused
        assert "is no llama-server" in refusal(target(engine_python="/nowhere/llama-server"))

    def test_finds_the_server_on_path(
        self, target: MakeTarget, install: Install, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(Path(install()).parent), prepend=":")
        engine = LlamaCppEngine(target(engine_python=None))
        engine.check()
        assert engine.launch(1).command[0] == install()


class TestCall:
    def test_sends_token_ids_and_no_sampler_but_temperature(self) -> None:
        call = attached().call(
            Generation(Sampling(64, temperature=0.7, ignore_eos=True, seed=5), token_ids=(0, 5, 7))
        )
        body = json.loads(call.body)
        assert call.path == "/completion"
        assert (body["prompt"], body["n_predict"], body["temperature"], body["seed"]) == (
            [0, 5, 7],
            64,
            0.7,
            5,
        )
        assert (body["samplers"], body["ignore_eos"], body["cache_prompt"]) == (["temperature"], True, False)

    def test_opens_a_connection_for_each_stream(self) -> None:
        """It closes them after each, and says that it keeps them."""
        call = attached().call(Generation(Sampling.exactly(64), token_ids=(0,)))
        assert call.headers["Connection"] == "close"

    def test_takes_no_messages(self) -> None:
        with pytest.raises(EngineError, match="is sent token ids"):
            attached().call(Generation(Sampling.exactly(64), messages=(Message("user", "Hello"),)))


class TestRead:
    def test_tokens_steps_and_accepted_drafts_of_a_draft_model(self) -> None:
        reply = attached().read(recorded("llamacpp_draft_model"))
        assert (reply.output_tokens, reply.prompt_tokens, reply.finish_reason) == (24, 8, "length")
        assert reply.token_ids is not None and len(reply.token_ids) == 24
        assert sum(reply.tokens_per_event) == 24
        assert reply.counters == Counters("response", None, 20, 16, (), 3, decode_steps=7)
        assert 7 == 24 - 1 - 16, "no draft goes past the end of the output"

    def test_steps_without_a_draft_count(self) -> None:
        counters = attached("ngram").read(recorded("llamacpp_ngram")).counters
        assert counters == Counters("response", None, 3, 3, (), 3, decode_steps=20)

    def test_a_step_that_stops_in_its_accepted_drafts_is_one_step(self) -> None:
        """Stopped at a word: one step had two drafts accepted, and the second was cut off."""
        reply = attached().read(recorded("llamacpp_stopped"))
        assert (reply.output_tokens, reply.finish_reason) == (3, "stop")
        assert reply.counters is not None
        assert (reply.counters.decode_steps, reply.counters.accepted_tokens) == (1, 2)
        assert inconsistency("draft_model", 3, reply.counters) is None

    def test_without_speculation_there_is_nothing_to_count(self) -> None:
        reply = attached("none").read(recorded("llamacpp_none"))
        assert (reply.output_tokens, reply.counters) == (24, None)

    def test_text_that_ends_inside_a_character_is_held_back(self) -> None:
        events = recorded("llamacpp_draft_model")
        reply = attached().read([*events[:4], *events[6:]])
        assert reply.output_tokens == 24
        assert reply.tokens_per_event[3:6] == (1, 3, 1)
        assert reply.token_ids is None

    def test_a_full_context_is_no_reply(self) -> None:
        *events, last = recorded("llamacpp_draft_model")
        truncated = json.dumps(json.loads(last) | {"truncated": True}).encode()
        with pytest.raises(EngineError, match=r"context was full after 31 tokens; .* --ctx-size"):
            attached().read([*events, truncated])

    def test_a_stream_that_breaks_off_has_no_finish_reason(self) -> None:
        reply = attached().read(recorded("llamacpp_draft_model")[:-1])
        assert (reply.finish_reason, reply.counters) == (None, None)

    def test_an_error_in_the_stream(self) -> None:
        error = {"error": {"code": 500, "message": "failed to find free space in the KV cache"}}
        with pytest.raises(EngineError, match="failed to find free space in the KV cache"):
            attached().read([json.dumps(error).encode()])

    def test_counts_that_go_back(self) -> None:
        events = recorded("llamacpp_draft_model")
        with pytest.raises(EngineError, match="goes back"):
            attached().read([events[5], events[2]])


class TestControl:
    def test_tokenizes_a_chat_with_one_beginning_of_sequence(self) -> None:
        answers = {
            "POST /apply-template": (200, {"prompt": "<|user|>Hi<|assistant|>"}),
            "POST /tokenize": (200, {"tokens": [0, 2, 43, 3]}),
        }
        with answering(answers) as (control, asked):
            assert attached().tokenize(control, [Message("user", "Hi")]) == (0, 2, 43, 3)
        assert asked["POST /apply-template"] == {"messages": [{"role": "user", "content": "Hi"}]}
        assert asked["POST /tokenize"] == {
            "content": "<|user|>Hi<|assistant|>",
            "add_special": True,
            "parse_special": True,
        }

    def test_reads_the_servers_own_counters(self) -> None:
        exposition = (RECORDED / "llamacpp_draft_model_metrics.txt").read_text()
        with answering({"GET /metrics": (200, exposition)}) as (control, _):
            assert attached().server_counters(control) == Counters("prometheus", 7, 20, 16, (6, 6, 4), 3)
            assert attached("none").server_counters(control) is None

    def test_takes_accepted_drafts_from_the_positions_which_are_not_rounded(self) -> None:
        exposition = (RECORDED / "llamacpp_draft_model_metrics.txt").read_text()
        rounded = exposition.replace("accepted_tokens_total 16", "accepted_tokens_total 1.23457e+06")
        assert rounded != exposition
        with answering({"GET /metrics": (200, rounded)}) as (control, _):
            counters = attached().server_counters(control)
        assert counters is not None and counters.accepted_tokens == 6 + 6 + 4

    def test_counts_that_are_rounded_are_not_reported(self) -> None:
        exposition = (RECORDED / "llamacpp_draft_model_metrics.txt").read_text()
        rounded = exposition.replace("num_drafts_total 7", "num_drafts_total 1.23457e+07").replace(
            "draft_tokens_total 20", "draft_tokens_total 2.5e+07"
        )
        assert rounded.count("e+07") == 2
        with answering({"GET /metrics": (200, rounded)}) as (control, _):
            counters = attached().server_counters(control)
        assert counters is not None
        assert (counters.drafted_steps, counters.drafted_tokens) == (None, None)
        assert counters.accepted_per_position == (6, 6, 4)

    def test_a_server_without_metrics_has_no_counters(self) -> None:
        with answering({"GET /metrics": (501, {"error": {"message": "not supported"}})}) as (control, _):
            assert attached().server_counters(control) is None

    def test_tells_its_slots_and_version(self) -> None:
        engine = attached()
        with answering({"GET /props": (200, PROPS)}) as (control, _):
            assert engine.requests_at_once(control) == 8
            assert engine.version(control) == "b1-0c1e570"


class TestHardware:
    TWO = "  CUDA0: NVIDIA H100 (81559 MiB, 81000 MiB free)\\n  CUDA1: NVIDIA H100 (81559 MiB, 81000 MiB free)\\n"

    @pytest.mark.parametrize(
        ("engine_args", "hardware"),
        [
            ((), Hardware("NVIDIA H100", 2)),
            (("--device", "CUDA1"), Hardware("NVIDIA H100", 1)),
        ],
    )
    def test_is_what_the_server_lists(
        self, target: MakeTarget, install: Install, engine_args: tuple[str, ...], hardware: Hardware
    ) -> None:
        made = target(engine_python=install(self.TWO), engine_args=engine_args)
        with answering({}) as (control, _):
            assert LlamaCppEngine(made).hardware(control) == hardware

    @pytest.mark.parametrize("engine_args", [("-ngl=0",), ("--device", "none")])
    def test_is_the_cpu_where_no_layer_is_elsewhere(
        self, target: MakeTarget, install: Install, engine_args: tuple[str, ...]
    ) -> None:
        made = target(engine_python=install(self.TWO), engine_args=engine_args)
        with answering({}) as (control, _):
            assert "cores" in LlamaCppEngine(made).hardware(control).accelerator
