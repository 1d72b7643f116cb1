"""The table of options: what each takes, and what its twin in pytest's configuration is. Whole runs: tests/integration."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_speedbench.settings.options import BY_FIELD, OPTIONS, PATHS


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("draft_length", "1", 1),
        ("split", "qualitative, throughput_1k", ("qualitative", "throughput_1k")),
        ("batch_size", "1,512", (1, 512)),
        ("temperature", "0", 0.0),
        ("degenerate", "1", 1.0),
        ("alpha", "0.5", 0.5),
        ("tolerance", "mean_output_tps = 1", ("mean_output_tps", 1.0)),
        ("tolerance", "other_hardware_acceptance_length=0.02", ("other_hardware_acceptance_length", 0.02)),
        ("env", "VLLM_X=a=b", ("VLLM_X", "a=b")),
        ("env", "VLLM_X=", ("VLLM_X", "")),
        ("url", "http://gpu-17:8000/v1/", "http://gpu-17:8000/v1"),
        ("ignore_eos", "Yes", True),
        ("save", "off", False),
    ],
)
def test_what_is_taken(field: str, text: str, value: Any) -> None:
    parsed = BY_FIELD[field].parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("draft_length", "0"),
        ("draft_length", "1.5"),
        ("output_length", "1"),
        ("batch_size", "1,513"),
        ("batch_size", "1,"),
        ("split", "throughput_1m"),
        ("category", "Coding"),
        ("temperature", "-0.1"),
        ("temperature", "inf"),
        ("temperature", "nan"),
        ("alpha", "0"),
        ("alpha", "0.51"),
        ("degenerate", "1.01"),
        ("tolerance", "output_tps=0"),
        ("tolerance", "ttft_s_mean=0.1"),
        ("tolerance", "other_hardware_output_tps=0.1"),
        ("env", "VLLM_X"),
        ("env", "1X=a"),
        ("url", "gpu-17:8000"),
        ("url", "http://gpu 17"),
        ("target", "../escape"),
        ("ignore_eos", "maybe"),
    ],
)
def test_what_is_refused(field: str, text: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        BY_FIELD[field].parse(text)


def test_a_default_is_among_what_is_allowed() -> None:
    for option in OPTIONS:
        if option.default is not None and not option.repeatable:
            assert option.parse(str(option.default)) == option.default, option.name


@pytest.mark.parametrize(
    ("field", "ini_type"),
    [
        ("rounds", "int"),
        ("temperature", "float"),
        ("ignore_eos", "bool"),
        ("model", "string"),
        ("batch_size", "linelist"),
        ("engine_arg", "linelist"),
    ],
)
def test_the_type_of_its_ini_twin(field: str, ini_type: str) -> None:
    assert BY_FIELD[field].ini_type == ini_type


def test_names_and_keys_are_given_once() -> None:
    assert len(BY_FIELD) == len(OPTIONS)
    keys = [option.key for option in OPTIONS if option.key is not None]
    assert len(set(keys)) == len(keys)
    assert set(PATHS) <= set(BY_FIELD)
    assert BY_FIELD["draft_length"].option == "--speedbench-draft-length"
