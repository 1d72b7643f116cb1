"""The engine that `docs/engines.md` shows, installed by its entry point as another distribution's would be."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "engines.md"
SERVER = """
import os
import pathlib
import sys

from aiohttp import web
from pytest_speedbench.engines.reference import __main__, protocol, server

assert os.environ["ACME_PREFIX_CACHE"] == "0"

async def forget(request):
    with (pathlib.Path(__file__).parent / "forgotten").open("a") as file:
        file.write("once")
    return web.Response()

class AcmeServer(server.Server):
    def application(self):
        application = super().application()
        application.router.add_post("/forget", forget)
        return application

protocol.MODEL = "acme-1"
sys.argv = ["draft_model" if argument == "shadow" else argument for argument in sys.argv]
server.Server = AcmeServer
sys.exit(__main__.main())
"""


def shown(language: str, start: str) -> str:
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    [block] = [text for text in blocks if text.startswith(start)]
    assert isinstance(block, str)
    return block


@pytest.fixture
def acme(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Installs the page's engine, and an `acme-server` that is the embedded engine with a route to forget."""
    packages, programs = tmp_path / "packages", tmp_path / "bin"
    info = packages / "acme_speedbench-1.0.dist-info"
    info.mkdir(parents=True)
    programs.mkdir()
    (packages / "acme_speedbench.py").write_text(shown("python", '"""acme_speedbench.py'))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-speedbench\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pytest_speedbench.engines]\nacme = acme_speedbench:AcmeEngine\n")
    (tmp_path / "acme.py").write_text(SERVER)
    program = programs / "acme-server"
    command = shlex.join([sys.executable, str(tmp_path / "acme.py")])
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(packages), prepend=os.pathsep)
    return tmp_path


def gate(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(
        test_gate="""
        import pytest

        @pytest.mark.speedbench(split="qualitative", categories=["coding"], batch_sizes=[2])
        def test_acceptance_length(speedbench):
            speedbench.measure().assert_no_regression("acceptance_length")
    """
    )
    return pytester.runpytest_subprocess(
        *("-p", "no:cacheprovider", "--speedbench-engine=acme", "--speedbench-output-length=32"), *arguments
    )


def test_it_is_complete_in_under_60_lines() -> None:
    assert len(shown("python", '"""acme_speedbench.py').splitlines()) < 60


def test_it_gates_as_any_other(pytester: pytest.Pytester, acme: Path) -> None:
    drafting = ("--speedbench-draft-length=2",)
    saved = gate(pytester, *drafting, "--speedbench-max-rounds=3", "--speedbench-save")
    saved.assert_outcomes(passed=1)
    saved.stdout.fnmatch_lines(["speedbench: acme, shadow k=2; target acme-shadow-k2"])
    assert (acme / "forgotten").read_text() == "once" * 3, "before each round"

    gate(pytester, *drafting).assert_outcomes(passed=1)

    worse = gate(pytester, *drafting, "--speedbench-engine-arg=--draft-quality=0.5")
    worse.assert_outcomes(failed=1)
    worse.stdout.fnmatch_lines(["*cause: drafter*"])


def test_its_refusals_are_one_line(
    pytester: pytest.Pytester, acme: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = gate(pytester, "--speedbench-method=ngram")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["ERROR: --speedbench-method=ngram: engine acme has none, shadow"])

    monkeypatch.setenv("PATH", "")
    refused = gate(pytester)
    refused.stderr.fnmatch_lines(["ERROR: --speedbench-engine=acme: acme-server is not on PATH"])


def test_its_mistakes_are_one_line(pytester: pytest.Pytester, acme: Path) -> None:
    module = acme / "packages" / "acme_speedbench.py"
    module.write_text(module.read_text().replace('control.get_json("/version")["version"]', "self.build"))
    failed = gate(pytester)
    failed.assert_outcomes(errors=1)
    failed.stdout.fnmatch_lines(
        ["*engine acme: AcmeEngine.version raised AttributeError: *'build' (acme_speedbench.py:*)"]
    )
    failed.stdout.no_fnmatch_line("*Traceback*")
