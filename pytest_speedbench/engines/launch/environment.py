"""The environment that an engine runs in: what a target adds, what of it is recorded, and what may not be set."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pytest_speedbench.errors import SettingsError

if TYPE_CHECKING:
    from pytest_speedbench.settings.target import Target

MASK = "MASKED"
"""Stands in for a secret."""

_RECORDED = ("VLLM_", "SGLANG_", "TLLM_", "LLAMA_ARG_")
"""Variables by which engines are configured, and which so can change what they do."""
_CHOOSES_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_SECRET_WORDS = {
    *("key", "apikey", "token", "secret", "password", "passwd"),
    *("auth", "authorization", "credential", "credentials"),
}


def is_secret(name: str) -> bool:
    """Whether the value of an option or a variable is to be masked.

    By whole words, for `--hf-token` is secret and `--num-speculative-tokens` is not.
    """
    return not _SECRET_WORDS.isdisjoint(re.split(r"[-_.]", name.lower()))


def environment_of(target: Target) -> dict[str, str]:
    """All variables that an engine of this target is launched with, but for those that the engine's module sets."""
    return {**os.environ, **target.environment}


def environment_in_force(target: Target) -> dict[str, str]:
    """What of its environment a measurement depends on, in alphabetical order; values of secrets are masked.

    That is what the target sets, and of this process's environment what configures an engine. Of a server that
    already runs it is not known, and empty.
    """
    if target.url is not None:
        return {}
    return {
        name: MASK if is_secret(name) else value
        for name, value in sorted(environment_of(target).items())
        if name in target.environment or name.startswith(_RECORDED) or name in _CHOOSES_DEVICES
    }


def refuse_faking(target: Target, variables: Mapping[str, float | None]) -> None:
    """Refuse variables by which an engine makes acceptance up.

    Args:
        target: what is to be launched.
        variables: by name, the number at which each does nothing; None where any value fakes.

    Raises:
        SettingsError: one line naming the variable and where it is set.
    """
    environment = environment_of(target)
    for name, off in variables.items():
        value = environment.get(name, "").strip()
        if value and not (off is not None and is_number(value, off)):
            where = "in env: of the target" if name in target.environment else "in the environment"
            raise SettingsError(
                f"{name}={value} {where} fakes acceptance, and so cannot be measured; unset it"
            )


def is_number(value: object, number: float) -> bool:
    """Whether a value, or its text, is this number."""
    try:
        return float(str(value)) == number
    except ValueError:
        return False
