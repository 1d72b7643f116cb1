"""A target, and how its tokens are chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_speedbench.settings.target import Sampling, Target, is_local


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost:8000/v1", True),
        ("http://[::1]:8000", True),
        ("https://LOCALHOST", True),
        ("http://gpu-17:8000", False),
        ("https://localhost.example.com", False),
        ("", False),
    ],
)
def test_whether_an_address_is_of_this_machine(url: str, local: bool) -> None:
    assert is_local(url) is local


def test_a_target_with_variables_can_be_a_key() -> None:
    target = Target("t", "vllm", "none", 0, environment={"VLLM_X": "1"})
    assert hash(target) == hash(replace(target, environment={}))
    assert target != replace(target, environment={}), "and yet another one"


def test_exactly_so_many_tokens() -> None:
    assert Sampling.exactly(16) == Sampling(16, temperature=0.0, ignore_eos=True, seed=0)
