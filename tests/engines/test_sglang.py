"""SGLang: what is launched for each method, what is refused, and what an attached server is asked.

A stub of an installed SGLang stands in for the gigabytes of the real one, which `tests/real` runs.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench.engines.base import Generation, Launch, Message
from pytest_speedbench.engines.sglang import SglangEngine
from pytest_speedbench.errors import EngineError, SettingsError
from pytest_speedbench.settings.target import Sampling, Target
from tests.engines.answering_server import Answers, answering

SERVER = {
    "version": "0.5.23",
    "model_path": "/models/tiny",
    "served_model_name": "tiny",
    "disable_radix_cache": True,
    "speculative_algorithm": "NGRAM",
    "speculative_num_steps": 0,
    "speculative_num_draft_tokens": 4,
    "speculative_accept_threshold_single": 1.0,
    "speculative_accept_threshold_acc": 1.0,
}
HELLO = (Message("user", "Say something."),)
FLUSH = "POST /flush_cache?timeout=30"

Install = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Make an interpreter that has a stub of SGLang (or none); importing the stub fails."""

    def make(
        *,
        has: bool = True,
        module: bool = True,
        options: str = "incremental_streaming_output: bool = False",
        where: str = "arg_groups/fields/serving.py",
    ) -> str:
        package = tmp_path / "packages" / "sglang"
        defined = package / "srt" / where
        defined.parent.mkdir(parents=True)
        defined.write_text(options)
        (package / "__init__.py").write_text("raise RuntimeError('SGLang was imported')")
        if module:
            (package / "launch_server.py").write_text("")
        python = tmp_path / "python"
        path = shlex.quote(str(package.parent)) if has else "''"
        python.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {shlex.quote(sys.executable)} -S "$@"\n')
        python.chmod(0o755)
        return str(python)

    return make


def target(method: str = "none", **fields: Any) -> Target:
    fields = {"draft_length": 0 if method == "none" else 3, "model": "org/tiny", **fields}
    return Target(name="t", engine="sglang", method=method, **fields)


def launched(install: Install, method: str, **fields: Any) -> Launch:
    engine = SglangEngine(target(method, engine_python=install(), **fields))
    engine.check()
    return engine.launch(8123)


def speculation(launch: Launch) -> str:
    command = list(launch.command)
    return " ".join(command[command.index("--speculative-algorithm") + 1 :])


def refusal(target: Target) -> str:
    with pytest.raises(SettingsError) as caught:
        SglangEngine(target).check()
    return str(caught.value)


class TestLaunch:
    def test_serves_on_this_machine_alone_and_without_a_prefix_cache(self, install: Install) -> None:
        launch = launched(install, "none")
        assert launch.command[1:] == (
            *("-m", "sglang.launch_server", "--model-path", "org/tiny"),
            *("--host", "127.0.0.1", "--port", "8123"),
            *("--disable-radix-cache", "--random-seed", "0"),
            "--incremental-streaming-output",
        )

    def test_a_health_check_generates_nothing(self, install: Install) -> None:
        assert launched(install, "none").environment == {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0"}

    @pytest.mark.parametrize(
        ("method", "draft_model", "arguments"),
        [
            ("ngram", None, "NGRAM --speculative-num-draft-tokens 4"),
            (
                "draft_model",
                "org/d",
                "STANDALONE --speculative-draft-model-path org/d --speculative-num-steps 3 "
                "--speculative-eagle-topk 1 --speculative-num-draft-tokens 4",
            ),
            (
                "eagle",
                "org/d",
                "EAGLE --speculative-draft-model-path org/d --speculative-num-steps 3 "
                "--speculative-eagle-topk 1 --speculative-num-draft-tokens 4",
            ),
            (
                "eagle3",
                "org/d",
                "EAGLE3 --speculative-draft-model-path org/d --speculative-num-steps 3 "
                "--speculative-eagle-topk 1 --speculative-num-draft-tokens 4",
            ),
            (
                "mtp",
                None,
                "NEXTN --speculative-num-steps 3 --speculative-eagle-topk 1 --speculative-num-draft-tokens 4",
            ),
            (
                "mtp",
                "org/d",
                "NEXTN --speculative-draft-model-path org/d --speculative-num-steps 3 "
                "--speculative-eagle-topk 1 --speculative-num-draft-tokens 4",
            ),
            (
                "dflash",
                "org/d",
                "DFLASH --speculative-draft-model-path org/d --speculative-num-draft-tokens 4",
            ),
        ],
    )
    def test_speculation_of_each_method(
        self, install: Install, method: str, draft_model: str | None, arguments: str
    ) -> None:
        assert speculation(launched(install, method, draft_model=draft_model)) == arguments

    @pytest.mark.parametrize(
        "tree",
        [
            ("--speculative-eagle-topk=4", "--speculative-num-draft-tokens=8"),
            ("--speculative_eagle_topk", "4", "--speculative_num_draft_tokens", "8"),
        ],
    )
    def test_a_tree_is_the_users_to_shape(self, install: Install, tree: tuple[str, ...]) -> None:
        launch = launched(install, "eagle3", draft_model="org/d", engine_args=tree)
        assert speculation(launch) == " ".join(
            ("EAGLE3 --speculative-draft-model-path org/d --speculative-num-steps 3", *tree)
        )

    def test_engine_args_come_last(self, install: Install) -> None:
        launch = launched(install, "ngram", engine_args=("--device", "cpu", "--dtype=float32"))
        assert launch.command[-3:] == ("--device", "cpu", "--dtype=float32")

    @pytest.mark.parametrize(
        ("options", "where", "known"),
        [
            ("incremental_streaming_output: bool", "arg_groups/fields/serving.py", True),
            ("incremental_streaming_output: bool", "server_args.py", True),
            ("stream_output: bool", "server_args.py", False),
        ],
    )
    def test_a_stream_of_deltas_where_the_version_has_it(
        self, install: Install, options: str, where: str, known: bool
    ) -> None:
        engine = SglangEngine(target(engine_python=install(options=options, where=where)))
        assert ("--incremental-streaming-output" in engine.launch(1).command) is known

    def test_a_version_without_the_module_has_the_command(self, install: Install) -> None:
        command = SglangEngine(target(engine_python=install(module=False))).launch(1).command
        assert command[1:5] == (
            "-c",
            "from sglang.cli.main import main; main()",
            "serve",
            "--model-path",
        )


class TestRefusals:
    def test_no_model(self) -> None:
        line = "--speedbench-engine=sglang needs --speedbench-model: a name or a folder"
        assert refusal(target(model=None)) == line

    def test_a_model_path_that_is_not_there(self, tmp_path: Path) -> None:
        path = tmp_path / "missing"
        assert refusal(target(model=str(path))) == f"--speedbench-model={path}: there is no such folder"

    @pytest.mark.parametrize("method", ["draft_model", "eagle", "eagle3", "dflash"])
    def test_no_draft_model_where_one_is_needed(self, method: str) -> None:
        line = f"--speedbench-method={method} needs --speedbench-draft-model: a name or a folder"
        assert refusal(target(method)) == line

    def test_a_method_sglang_does_not_have(self) -> None:
        assert refusal(target("suffix")) == (
            "--speedbench-method=suffix: engine sglang has "
            "dflash, draft_model, eagle, eagle3, mtp, ngram, none"
        )

    @pytest.mark.parametrize(
        ("engine_arg", "line"),
        [
            ("--port=1", "--port: the plugin chooses where the server listens"),
            ("--model-path=x", "--model-path: use --speedbench-model"),
            ("--speculative_num_steps=5", "--speculative-num-steps: use --speedbench-draft-length"),
            ("--speculative-algorithm=EAGLE", "--speculative-algorithm: use --speedbench-method"),
            (
                "--speculative-num-draft-tokens=8",
                "--speculative-num-draft-tokens: use --speedbench-draft-length; "
                "allowed with --speculative-eagle-topk above 1, which drafts a tree",
            ),
            (
                "--speculative-accept-threshold-single=0.5",
                "--speculative-accept-threshold-single=0.5: accepts drafts that the target model would not have "
                "written, and so cannot be measured; allowed is 1.0",
            ),
            (
                "--speculative_accept_threshold_acc=0.9",
                "--speculative-accept-threshold-acc=0.9: accepts drafts that the target model would not have "
                "written, and so cannot be measured; allowed is 1.0",
            ),
        ],
    )
    def test_arguments_that_are_the_plugins_or_falsify(self, engine_arg: str, line: str) -> None:
        found = refusal(target("eagle", draft_model="org/d", engine_args=(engine_arg,)))
        assert found == f"--speedbench-engine-arg={line}"

    def test_a_tree_without_a_size(self) -> None:
        tree = target("eagle", draft_model="org/d", engine_args=("--speculative-eagle-topk=4",))
        assert refusal(tree) == (
            "--speedbench-engine-arg=--speculative-eagle-topk=4: drafts a tree; add "
            "--speedbench-engine-arg=--speculative-num-draft-tokens=N, the number of its tokens"
        )

    def test_faked_acceptance(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SGLANG_SIMULATE_ACC_LEN", "2.5")
        assert refusal(target("ngram")) == (
            "SGLANG_SIMULATE_ACC_LEN=2.5 in the environment fakes acceptance, and so cannot be measured; unset it"
        )

    def test_a_simulation_that_is_off_is_none(
        self, install: Install, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SGLANG_SIMULATE_ACC_LEN", "-1")
        launched(install, "ngram", engine_args=("--speculative-accept-threshold-acc=1",))

    def test_an_interpreter_without_sglang(self, install: Install) -> None:
        python = install(has=False)
        assert refusal(target(engine_python=python)) == (
            f"--speedbench-engine=sglang: SGLang is not installed in {python}; "
            "pip install sglang there, or name its interpreter with --speedbench-engine-python"
        )


class TestCall:
    def test_token_ids_go_to_the_native_route(self) -> None:
        call = SglangEngine(target()).call(Generation(Sampling.exactly(64), token_ids=(5, 7)))
        assert call.path == "/generate"
        assert json.loads(call.body) == {
            "input_ids": [5, 7],
            "stream": True,
            "sampling_params": {
                "max_new_tokens": 64,
                "temperature": 0.0,
                "top_p": 1.0,
                "top_k": -1,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "frequency_penalty": 0.0,
                "presence_penalty": 0.0,
                "ignore_eos": True,
            },
        }

    def test_messages_go_to_the_chat_and_ask_for_counters(self) -> None:
        call = SglangEngine(target()).call(Generation(Sampling.exactly(64), messages=HELLO))
        body = json.loads(call.body)
        assert call.path == "/v1/chat/completions"
        assert body["messages"] == [{"role": "user", "content": "Say something."}]
        assert body["return_spec_tokens_details"] is True
        assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
        assert body["return_token_ids"] is False


class TestTokenize:
    def test_the_servers_own_template(self) -> None:
        with answering({"POST /tokenize": (200, {"tokens": [0, 2, 9]})}) as (control, asked):
            assert SglangEngine(target()).tokenize(control, HELLO) == (0, 2, 9)
        assert asked["POST /tokenize"]["add_generation_prompt"] is True

    @pytest.mark.parametrize("status", [400, 404, 422])
    def test_none_where_the_route_is_missing_or_wants_a_prompt(self, status: int) -> None:
        answers: Answers = {"POST /tokenize": (status, {"message": "'prompt': Field required"})}
        with answering(answers) as (control, _):
            assert SglangEngine(target()).tokenize(control, HELLO) is None


class TestReset:
    def test_flushes_and_waits_until_the_server_is_idle(self) -> None:
        with answering({"GET /server_info": (200, SERVER), FLUSH: (200, "Cache flushed.")}) as (
            control,
            asked,
        ):
            SglangEngine(target()).reset(control)
        assert FLUSH in asked

    def test_a_server_that_is_never_idle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pytest_speedbench.engines.sglang._FLUSH_S", 0)
        answers: Answers = {
            "GET /server_info": (200, SERVER),
            "POST /flush_cache?timeout=0": (400, "Flush cache failed."),
        }
        with (
            answering(answers) as (control, _),
            pytest.raises(
                EngineError, match=r"answered 400 for 0 s: Flush cache failed\.; does anybody else"
            ),
        ):
            SglangEngine(target()).reset(control)


class TestAttached:
    """A server that already runs; its `/server_info` says how it was started."""

    def meet(self, method: str = "ngram", *, draft_length: int = 3, model: str = "tiny", **told: Any) -> str:
        """Its version, once it was found to be what the target says."""
        with answering({"GET /server_info": (200, {**SERVER, **told})}) as (control, _):
            url = control.url
            engine = SglangEngine(target(method, url=url, model=model, draft_length=draft_length))
            engine.check()
            try:
                return engine.version(control)
            except EngineError as error:
                return str(error).replace(url, "URL")

    def test_what_the_target_says(self) -> None:
        assert self.meet() == "0.5.23"
        assert self.meet(model="/models/tiny") == "0.5.23"

    @pytest.mark.parametrize(
        ("method", "algorithm"),
        [("mtp", "EAGLE"), ("mtp", "FROZEN_KV_MTP"), ("eagle", "EAGLE"), ("draft_model", "STANDALONE")],
    )
    def test_algorithms_that_go_by_several_names(self, method: str, algorithm: str) -> None:
        assert self.meet(method, speculative_algorithm=algorithm, speculative_num_steps=3) == "0.5.23"

    def test_under_the_name_that_older_versions_have(self) -> None:
        with answering({"GET /get_server_info": (200, {**SERVER, "version": "0.5.2"})}) as (control, _):
            assert SglangEngine(target("ngram", url=control.url, model=None)).version(control) == "0.5.2"

    def test_a_launched_server_that_has_its_thresholds_from_a_file(self) -> None:
        told = {**SERVER, "speculative_accept_threshold_acc": 0.9}
        with (
            answering({"GET /server_info": (200, told)}) as (control, _),
            pytest.raises(
                EngineError, match=r"was started with --speculative-accept-threshold-acc=0\.9, which"
            ),
        ):
            SglangEngine(target("ngram")).version(control)

    @pytest.mark.parametrize(
        ("fields", "line"),
        [
            ({"model": "org/other"}, "--speedbench-model=org/other: the server at URL serves /models/tiny"),
            (
                {"method": "eagle3"},
                "--speedbench-method=eagle3: the server at URL runs speculative algorithm NGRAM",
            ),
            (
                {"method": "none", "draft_length": 0},
                "--speedbench-method=none: the server at URL runs speculative algorithm NGRAM",
            ),
            (
                {"speculative_algorithm": None},
                "--speedbench-method=ngram: the server at URL drafts nothing",
            ),
            (
                {"stream_output": True},
                "the server at URL was started with --stream-output, which loses tokens of the stream when they "
                "come fast; start it without",
            ),
            ({"draft_length": 5}, "--speedbench-draft-length=5: the server at URL drafts 3 tokens"),
            (
                {"disable_radix_cache": False},
                "the server at URL keeps a prefix cache, which would be measured instead of the engine; "
                "start it with --disable-radix-cache",
            ),
            (
                {"speculative_accept_threshold_single": 0.4},
                "the server at URL was started with --speculative-accept-threshold-single=0.4, which accepts "
                "drafts that the target model would not have written, and so cannot be measured",
            ),
        ],
    )
    def test_what_it_does_not_say(self, fields: dict[str, Any], line: str) -> None:
        assert self.meet(**fields) == line

    @pytest.mark.parametrize(
        ("told", "requests"),
        [
            ({"max_running_requests": 48}, 48),
            (
                {
                    "max_running_requests": 96,
                    "internal_states": [{"effective_max_running_requests_per_dp": 40}] * 2,
                },
                80,
            ),
            ({"max_running_requests": None, "internal_states": [{}]}, sys.maxsize),
        ],
    )
    def test_how_many_requests_it_computes_at_once(self, told: dict[str, Any], requests: int) -> None:
        with answering({"GET /server_info": (200, {**SERVER, **told})}) as (control, _):
            assert SglangEngine(target("ngram")).requests_at_once(control) == requests

    def test_the_hardware_of_another_machine_is_not_this_ones(self) -> None:
        with answering({}) as (control, _):
            hardware = SglangEngine(target(url="http://gpu-17:30000")).hardware(control)
        assert hardware.key == "unknown, at gpu-17:30000 x 1"


class TestHardware:
    @pytest.fixture(autouse=True)
    def gpus(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(
            "#!/bin/sh\nprintf 'GPU %s: NVIDIA H100 80GB HBM3 (UUID: GPU-0)\\n' 0 1 2 3 4 5 6 7\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    @pytest.mark.parametrize(
        ("engine_args", "count"),
        [
            ((), 1),
            (("--tp", "4"), 4),
            (("--tp-size=2", "--dp-size=2"), 4),
            (("--tp-size=4", "--dp-size=4", "--enable-dp-attention"), 4),
        ],
    )
    def test_counts_the_accelerators_that_arguments_ask_for(
        self, install: Install, engine_args: tuple[str, ...], count: int
    ) -> None:
        engine = SglangEngine(target(engine_python=install(), engine_args=engine_args))
        with answering({}) as (control, _):
            assert engine.hardware(control).key == f"NVIDIA H100 80GB HBM3 x {count}"

    def test_a_server_on_the_cpu_does_not_compute_on_the_gpus_beside_it(self, install: Install) -> None:
        engine = SglangEngine(target(engine_python=install(), engine_args=("--device", "cpu")))
        with answering({}) as (control, _):
            assert "NVIDIA" not in engine.hardware(control).key
