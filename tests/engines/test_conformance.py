"""The embedded engine passes the suite that every engine passes; the real ones do so in `tests/real`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_speedbench.settings.target import Target
from tests.engines.conformance import GONE_S, Conformance
from tests.engines.launch.watch import Watch

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="uses /proc and child subreapers"
)


class TestDraftModel(Conformance):
    method = "draft_model"

    @classmethod
    def target(cls) -> Target:
        return Target(name="reference", engine="reference", method=cls.method, draft_length=3)

    @classmethod
    def broken(cls, folder: Path) -> Target:
        return replace(cls.target(), engine_args=("--no-such-option",))


class TestNgram(TestDraftModel):
    method = "ngram"


def test_the_suite_sees_a_process_that_is_left() -> None:
    with (
        Watch() as watch,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process,
    ):
        assert [int(left.split()[0]) for left in watch.left(0.2)] == [process.pid]
        process.kill()
        assert watch.left(GONE_S) == []
