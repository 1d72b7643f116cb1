"""A target as a user names it on the command line."""

from __future__ import annotations

from pytest_speedbench.settings.target import Target


def options_of(target: Target) -> list[str]:
    """The options that say the same as a target; one with a URL is attached to, and nothing is launched."""
    told: dict[str, object] = {
        "engine": target.engine,
        "method": target.method,
        "draft-length": target.draft_length or None,
        "model": target.model,
        "draft-model": target.draft_model,
        "url": target.url,
    }
    options = [f"--speedbench-{name}={value}" for name, value in told.items() if value is not None]
    if target.url is not None:
        return options
    if target.engine_python is not None:
        options.append(f"--speedbench-engine-python={target.engine_python}")
    return [*options, *(f"--speedbench-engine-arg={arg}" for arg in target.engine_args)]
