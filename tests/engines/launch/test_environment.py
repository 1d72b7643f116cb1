"""What of its environment a measurement depends on, and which variables may not be set."""

from __future__ import annotations

import pytest

from pytest_speedbench.engines.launch.environment import environment_in_force, is_secret, refuse_faking
from pytest_speedbench.errors import SettingsError
from pytest_speedbench.settings.target import Target


def target(url: str | None = None, **environment: str) -> Target:
    return Target("t", "vllm", "eagle3", 3, environment=environment, url=url)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment_in_force(target()):
        monkeypatch.delenv(name)


def test_what_configures_an_engine_and_what_the_target_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    monkeypatch.setenv("SGLANG_X", "1")
    monkeypatch.setenv("TLLM_Y", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("OF_NO_CONCERN", "4")
    found = environment_in_force(target(VLLM_USE_V2_MODEL_RUNNER="1", OMP_NUM_THREADS="8"))
    assert list(found.items()) == [
        ("CUDA_VISIBLE_DEVICES", "3"),
        ("OMP_NUM_THREADS", "8"),
        ("SGLANG_X", "1"),
        ("TLLM_Y", "2"),
        ("VLLM_USE_V2_MODEL_RUNNER", "1"),
    ]


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sk-1")
    assert environment_in_force(target(HF_TOKEN="hf-2")) == {"HF_TOKEN": "MASKED", "VLLM_API_KEY": "MASKED"}


def test_that_of_a_running_server_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    assert environment_in_force(target(url="http://127.0.0.1:1")) == {}


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("VLLM_API_KEY", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("HF_TOKEN", True),
        ("--hf-token", True),
        ("DB_PASSWORD", True),
        ("BASIC_AUTH", True),
        ("GCP_CREDENTIALS", True),
        ("--num-speculative-tokens", False),
        ("VLLM_MAX_AUTHORS", False),
        ("SGLANG_MONKEY", False),
    ],
)
def test_a_secret_is_known_by_a_word_of_its_name(name: str, secret: bool) -> None:
    assert is_secret(name) is secret


def test_faking_is_refused_wherever_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_faking(target(), {"FAKE": 0.0})
    refuse_faking(target(FAKE="0"), {"FAKE": 0.0})
    with pytest.raises(SettingsError, match=r"^FAKE=2 in env: of the target fakes acceptance, .*; unset it$"):
        refuse_faking(target(FAKE="2"), {"FAKE": 0.0})
    monkeypatch.setenv("FAKE", "1.5")
    with pytest.raises(SettingsError, match=r"^FAKE=1\.5 in the environment fakes acceptance"):
        refuse_faking(target(), {"FAKE": 0.0})
    with pytest.raises(SettingsError, match=r"^FAKE=1\.5 in the environment fakes acceptance"):
        refuse_faking(target(), {"FAKE": None})
    refuse_faking(target(FAKE="0"), {"FAKE": 0.0})
