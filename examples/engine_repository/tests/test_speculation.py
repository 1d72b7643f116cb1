"""Speculative decoding is as good as its baseline, cell by cell; skipped where no engine is named."""

from __future__ import annotations

import pytest
import requests

from pytest_speedbench import DatasetLoader, RunningEngine, SpeedBench


@pytest.mark.speedbench(split="qualitative", batch_sizes=[1, 32])
def test_acceptance_length(speedbench: SpeedBench) -> None:
    """A change must not cost accepted drafts in any domain."""
    speedbench.measure().assert_no_regression("acceptance_length")


@pytest.mark.speedbench(split="throughput_1k", batch_sizes=[1, 32, 128])
def test_throughput(speedbench: SpeedBench) -> None:
    """Nor speed: of the whole batch, and as one user sees it."""
    speedbench.measure().assert_no_regression("output_tps", "user_tps")


@pytest.mark.speedbench(split="throughput_1k", batch_sizes=[32])
def test_first_token_within_two_seconds(speedbench: SpeedBench) -> None:
    """What this project promises its users is a number of its own, and no baseline moves it."""
    assert speedbench.measure().metric("ttft_s_p99") < 2.0


def test_one_request(speedbench_engine: RunningEngine, speedbench_dataset: DatasetLoader) -> None:
    """The engine answers a single request over HTTP, as every other client sends it."""
    served = requests.get(f"{speedbench_engine.url}/v1/models", timeout=60).json()["data"][0]["id"]
    prompt = speedbench_dataset("qualitative", categories=["coding"]).prompts[0]
    answer = requests.post(
        f"{speedbench_engine.url}/v1/chat/completions",
        json={
            "model": served,
            "messages": [{"role": "user", "content": prompt.turns[0]}],
            "max_tokens": 16,
        },
        timeout=60,
    )
    answer.raise_for_status()
    assert answer.json()["choices"][0]["message"]["content"]
