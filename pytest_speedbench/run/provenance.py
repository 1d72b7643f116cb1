"""Where a run came from: commit, branch, CI job, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_CI_URLS = ("CI_JOB_URL", "BUILDKITE_BUILD_URL", "BUILD_URL", "CIRCLE_BUILD_URL")
"""Variables in which GitLab, Buildkite, Jenkins and CircleCI name the job's page."""
_BRANCHES = ("GITHUB_HEAD_REF", "GITHUB_REF_NAME", "CI_COMMIT_REF_NAME", "BUILDKITE_BRANCH", "GIT_BRANCH")
"""Variables in which CI systems name the branch, where the checkout itself has none."""


@dataclass(frozen=True)
class Provenance:
    """Where a run came from. What is not known is None."""

    commit: str | None
    """Full hash of the commit that is checked out in pytest's rootdir."""
    dirty: bool
    """Whether tracked files differ from that commit."""
    branch: str | None
    ci_url: str | None
    """Page of the CI job."""
    machine: Mapping[str, str | int]
    """`system`, `release`, `architecture`, `cpus`, `python`."""

    @property
    def described(self) -> str | None:
        """The commit as a baseline names it: 12 digits, `-dirty` where files differ."""
        return None if self.commit is None else self.commit[:12] + "-dirty" * self.dirty


def provenance(folder: Path, environment: Mapping[str, str] = os.environ) -> Provenance:
    """Where a run in a folder comes from.

    Args:
        folder: pytest's rootdir; need not be a git repository.
        environment: where CI systems say what they run.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD")
    if branch in (None, "HEAD"):  # detached, as CI systems check out
        branch = next((environment[name] for name in _BRANCHES if environment.get(name)), None)
    return Provenance(
        commit=commit,
        dirty=commit is not None and bool(_git(folder, "status", "--porcelain", "--untracked-files=no")),
        branch=branch,
        ci_url=_ci_url(environment),
        machine={
            "system": platform.system(),
            "release": platform.release(),
            "architecture": platform.machine(),
            "cpus": os.cpu_count() or 0,
            "python": platform.python_version(),
        },
    )


def _ci_url(environment: Mapping[str, str]) -> str | None:
    server, repository, run = (
        environment.get(name) for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID")
    )
    if server and repository and run:
        return f"{server}/{repository}/actions/runs/{run}"
    return next((environment[name] for name in _CI_URLS if environment.get(name)), None)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers; None where it fails, is not there, or answers nothing."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
