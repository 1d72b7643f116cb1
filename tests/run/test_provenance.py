"""Where a run came from: the repository, the CI job, the machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pytest_speedbench.run.provenance import provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One commit, on branch `faster`."""
    git(tmp_path, "init", "-q", "-b", "faster")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "a")
    return tmp_path


def test_commit_and_branch_are_those_of_the_repository(repository: Path) -> None:
    where = provenance(repository, {})
    assert where.commit == git(repository, "rev-parse", "HEAD")
    assert (where.branch, where.dirty, where.ci_url) == ("faster", False, None)
    assert where.described == (where.commit or "")[:12]
    assert where.machine["cpus"]


def test_changed_files_make_it_dirty_and_new_ones_do_not(repository: Path) -> None:
    (repository / "b").write_text("2")
    assert not provenance(repository, {}).dirty
    (repository / "a").write_text("2")
    where = provenance(repository, {})
    assert where.dirty
    assert where.described == f"{(where.commit or '')[:12]}-dirty"


def test_the_branch_of_a_detached_checkout_is_what_ci_says(repository: Path) -> None:
    git(repository, "checkout", "-q", "--detach")
    assert provenance(repository, {}).branch is None
    assert provenance(repository, {"GITHUB_HEAD_REF": "", "GITHUB_REF_NAME": "main"}).branch == "main"


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        (
            {
                "GITHUB_SERVER_URL": "https://github.com",
                "GITHUB_REPOSITORY": "o/r",
                "GITHUB_RUN_ID": "8",
            },
            "https://github.com/o/r/actions/runs/8",
        ),
        ({"GITHUB_SERVER_URL": "https://github.com"}, None),
        ({"BUILDKITE_BUILD_URL": "https://buildkite.com/o/r/builds/8"}, "https://buildkite.com/o/r/builds/8"),
    ],
)
def test_the_ci_job_is_named_by_its_page(
    tmp_path: Path, environment: dict[str, str], url: str | None
) -> None:
    where = provenance(tmp_path, environment)
    assert where.ci_url == url
    assert (where.commit, where.described) == (None, None), "not a repository"
