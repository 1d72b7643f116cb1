"""Settings of a run, read without pytest: options in, one frozen object out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_speedbench.errors import SettingsError
from pytest_speedbench.settings.methods import Method, Offer
from pytest_speedbench.settings.options import Option
from pytest_speedbench.settings.read import Lookup, Settings, read

OFFERS = {
    "acme": Offer.of("acme", ("none", "ngram", "eagle3", Method("tree", draft_model="optional")), "tree"),
    "endpoint": Offer.of("endpoint", ("unknown",), "unknown"),
    "plain": Offer.of("plain", ("none", "ngram"), "none"),
}


def offers(name: str) -> Offer:
    return OFFERS[name]


def given(values: dict[str, Any], place: str) -> Lookup:
    def look_up(option: Option) -> tuple[Any, str, Path] | None:
        return (values[option.field], f"{place}{option.name}", Path("/")) if option.field in values else None

    return look_up


def settings(rootdir: Path = Path("/"), ini: dict[str, Any] | None = None, **options: Any) -> Settings:
    found = read(rootdir, given(options, "--speedbench-"), given(ini or {}, "tox.ini: speedbench_"), offers)
    assert found is not None
    return found


def refusal(rootdir: Path = Path("/"), ini: dict[str, Any] | None = None, **options: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        settings(rootdir, ini, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_engine_no_settings() -> None:
    assert read(Path("/"), given({}, ""), given({}, ""), offers) is None


class TestMethod:
    def test_the_engine_says_which_one_it_has_by_default(self) -> None:
        target = settings(engine="acme").target
        assert (target.method, target.draft_length, target.name) == ("tree", 3, "acme-tree-k3")
        target = settings(engine="plain").target
        assert (target.method, target.draft_length, target.name) == ("none", 0, "plain-none")

    def test_one_that_it_does_not_have_is_refused_with_those_that_it_has(self) -> None:
        assert (
            refusal(engine="plain", method="tree") == "--speedbench-method=tree: engine plain has ngram, none"
        )
        assert refusal(engine="plain", ini={"method": "tree"}) == (
            "tox.ini: speedbench_method=tree: engine plain has ngram, none"
        )

    def test_a_draft_model_goes_with_methods_that_take_one(self) -> None:
        assert settings(engine="acme", draft_model="d").target.draft_model == "d"
        assert refusal(engine="acme", method="ngram", draft_model="d") == (
            "--speedbench-draft-model=d: method ngram of engine acme has no draft model; "
            "allowed with --speedbench-method=eagle3, tree"
        )
        assert refusal(engine="plain", draft_model="d").endswith(
            "of engine plain has no draft model; leave it out"
        )


class TestEnvironment:
    FILE = """
targets:
  here:
    engine: plain
    env: {VLLM_USE_V2_MODEL_RUNNER: "1", HF_HOME: /a=b, OMP_NUM_THREADS: 8}
  there:
    engine: plain
    url: http://gpu-17:8000
    hardware: NVIDIA H100 80GB HBM3 x 8
"""

    @pytest.fixture
    def rootdir(self, tmp_path: Path) -> Path:
        (tmp_path / "speedbench.yaml").write_text(self.FILE)
        return tmp_path

    def test_variables_of_a_target(self, rootdir: Path) -> None:
        assert settings(rootdir, target="here").target.environment == {
            "VLLM_USE_V2_MODEL_RUNNER": "1",
            "HF_HOME": "/a=b",
            "OMP_NUM_THREADS": "8",
        }

    def test_those_of_the_command_line_replace_them(self, rootdir: Path) -> None:
        assert settings(rootdir, target="here", env=["A="]).target.environment == {"A": ""}

    def test_what_a_running_server_cannot_be_given(self, rootdir: Path) -> None:
        assert refusal(rootdir, target="there", env=["A=1"]) == (
            "--speedbench-env: a running server (http://gpu-17:8000) takes no environment variables; drop one of the two"
        )

    @pytest.mark.parametrize("bad", ["A", "=1", "A B=1", "1A=1"])
    def test_what_is_not_a_variable(self, bad: str) -> None:
        assert refusal(engine="plain", env=[bad]) == f"--speedbench-env={bad}: allowed is NAME=VALUE"

    def test_the_hardware_of_a_running_server(self, rootdir: Path) -> None:
        assert settings(rootdir, target="there").target.hardware == "NVIDIA H100 80GB HBM3 x 8"
        assert refusal(engine="plain", hardware="H100").startswith(
            "--speedbench-hardware=H100: only for a server that already runs (--speedbench-url)"
        )


@pytest.mark.parametrize(
    ("engine", "url", "model", "name"),
    [
        ("endpoint", "https://api.example.com/v1", "m", "endpoint-api.example.com-m-unknown"),
        ("endpoint", "https://other.example.com", "m", "endpoint-other.example.com-m-unknown"),
        ("endpoint", "http://127.0.0.1:8000", None, "endpoint-127.0.0.1-8000-unknown"),
        ("endpoint", "http://me:secret@host:1", None, "endpoint-host-1-unknown"),
        ("plain", "http://GPU-17:8000", "org/Model", "plain-gpu-17-8000-model-none"),
        ("plain", "http://[::1]:8000", "m", "plain-m-none"),
    ],
)
def test_two_endpoints_do_not_share_a_baseline(engine: str, url: str, model: str | None, name: str) -> None:
    options: dict[str, Any] = {"model": model} if model else {}
    assert settings(engine=engine, url=url, **options).target.name == name
