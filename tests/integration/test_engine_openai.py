"""`--speedbench-engine=openai` measures any endpoint from its streams, and says what it cannot know."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_speedbench.engines.launch.process import start
from pytest_speedbench.engines.reference.engine import ReferenceEngine
from pytest_speedbench.settings.target import Target
from tests.engines.openai_stub import OpenAiStub, serving

KEY = "sk-1234567890abcdef"
GATES = """
    import pytest

    @pytest.mark.speedbench(split="qualitative", categories=["coding"], batch_sizes=[2])
    def test_gate(speedbench):
        speedbench.measure().assert_no_regression("{metric}")
"""

Gate = Callable[..., pytest.RunResult]


@pytest.fixture
def gate(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Gates a metric of one cell on an endpoint."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("SPEEDBENCH_API_KEY", raising=False)

    def gate(metric: str, url: str, *arguments: str, apart: bool = False) -> pytest.RunResult:
        pytester.makepyfile(test_gate=GATES.format(metric=metric))
        return (pytester.runpytest_subprocess if apart else pytester.runpytest)(
            *("-p", "no:cacheprovider", "--speedbench-engine=openai", f"--speedbench-url={url}"),
            *("--speedbench-output-length=32", "--speedbench-limit=4", "--speedbench-json=results.json"),
            *arguments,
        )

    return gate


def results(pytester: pytest.Pytester) -> dict[str, object]:
    (cell,) = json.loads((pytester.path / "results.json").read_text())["cells"]
    assert isinstance(cell, dict)
    return cell


def files(pytester: pytest.Pytester) -> str:
    return "".join(path.read_text() for path in pytester.path.rglob("*") if path.suffix in (".json", ".yaml"))


def test_acceptance_length_is_estimated_where_every_event_tells_its_usage(
    pytester: pytest.Pytester, tmp_path: Path, gate: Gate
) -> None:
    target = Target("reference", "reference", "draft_model", 3)
    with start(ReferenceEngine(target), target, tmp_path / "logs") as server:
        saved = gate("acceptance_length", server.url, "--speedbench-save")
        cell = results(pytester)
        again = gate(
            "acceptance_length",
            server.url,
            "--speedbench-tolerance=acceptance_length=0.5",
            "--speedbench-report=run.md",
        )
    saved.assert_outcomes(passed=1)
    saved.stdout.fnmatch_lines(["speedbench: openai, unknown at *"])
    assert (cell["counter_source"], cell["tokenization"]) == ("estimated", "messages")
    assert "acceptance length is estimated" in str(cell["notes"])
    assert cell["problems"] == []
    again.assert_outcomes(passed=1)
    for shown in (again.stdout.str(), (pytester.path / "run.md").read_text()):
        assert re.search(r"^qualitative-\S+ +~\d\.\d\d ", shown, re.MULTILINE)
        assert "~ is estimated: stream events were taken for decode steps" in shown


def test_acceptance_length_is_not_available_elsewhere_and_its_gate_fails(
    pytester: pytest.Pytester, gate: Gate
) -> None:
    with serving(OpenAiStub()) as endpoint:
        result = gate("acceptance_length", endpoint.url)
    result.assert_outcomes(failed=1)
    told = " ".join(result.stdout.str().split())
    assert "INVALID: acceptance_length is missing: not available: the endpoint reports neither" in told
    assert "Traceback" not in told
    assert "acceptance_length" not in results(pytester)["metrics"]  # type: ignore[operator]


def test_speed_is_gated_where_acceptance_length_is_not_available(
    pytester: pytest.Pytester, gate: Gate
) -> None:
    with serving(OpenAiStub()) as endpoint:
        saved = gate("output_tps", endpoint.url, "--speedbench-save")
        again = gate("output_tps", endpoint.url, "--speedbench-tolerance=output_tps=0.99")
    saved.assert_outcomes(passed=1)
    saved.stdout.fnmatch_lines(["saved 1 cell to baselines/openai-localhost-*-unknown.yaml*"])
    again.assert_outcomes(passed=1)
    (check,) = results(pytester)["verdicts"].values()  # type: ignore[attr-defined]
    assert check["verdict"] in ("pass", "improvement")
    assert endpoint.asked[-1]["messages"][0]["role"] == "user"


def test_a_stream_without_usage_is_no_measurement(gate: Gate) -> None:
    with serving(OpenAiStub(tells_usage=False)) as endpoint:
        result = gate("output_tps", endpoint.url)
    result.assert_outcomes(errors=1)
    assert "has no `usage`: its output tokens are not known" in " ".join(result.stdout.str().split())


@pytest.mark.parametrize("variable", ["SPEEDBENCH_API_KEY", "OPENAI_API_KEY"])
def test_the_key_is_sent_and_written_nowhere(
    pytester: pytest.Pytester, gate: Gate, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, KEY)
    with serving(OpenAiStub(key=KEY)) as endpoint:
        result = gate("output_tps", endpoint.url, "--speedbench-save", "-vv", "--showlocals")
    result.assert_outcomes(passed=1)
    assert endpoint.keys == {f"Bearer {KEY}"}
    assert KEY not in result.stdout.str() + result.stderr.str() + files(pytester)


def test_a_key_that_the_server_repeats_is_masked(
    pytester: pytest.Pytester, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEEDBENCH_API_KEY", KEY)
    with serving(OpenAiStub(key=KEY, repeats_the_key=True)) as endpoint:
        result = gate("output_tps", endpoint.url, "-vv", "--showlocals")
    result.assert_outcomes(errors=1)
    assert "Incorrect API key provided: MASKED" in " ".join(result.stdout.str().split())
    assert KEY not in result.stdout.str() + result.stderr.str() + files(pytester)


def test_a_wrong_key_is_said_so(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEEDBENCH_API_KEY", "sk-another-key")
    with serving(OpenAiStub(key=KEY)) as endpoint:
        result = gate("output_tps", endpoint.url)
    result.assert_outcomes(errors=1)
    printed = " ".join(result.stdout.str().split())
    assert "/v1/models answered 401: " in printed
    assert "the key that was sent is not accepted: set SPEEDBENCH_API_KEY" in printed
    assert "sk-another-key" not in result.stdout.str()


def test_measures_over_https(gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes its certificate with openssl, which is not here")
    certificate, authority = tmp_path / "localhost.pem", tmp_path / "authority.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(certificate), "-out", str(authority)),
        ],
        check=True,
        capture_output=True,
    )
    certificate.write_text(certificate.read_text() + authority.read_text())
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(OpenAiStub(key=KEY), certificate) as endpoint:
        distrusted = gate("output_tps", endpoint.url, apart=True)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        trusted = gate("output_tps", f"{endpoint.url}/v1", "--speedbench-save", apart=True)
    distrusted.assert_outcomes(errors=1)
    trusted.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "--speedbench-engine=openai needs --speedbench-url: it measures a server that already runs"),
        (
            ("--speedbench-url=http://me:pass@127.0.0.1:1",),
            "--speedbench-url: holds a user name; give a key in $SPEEDBENCH_API_KEY instead",
        ),
        (
            ("--speedbench-url=http://127.0.0.1:1", "--speedbench-method=eagle3"),
            "--speedbench-method=eagle3: engine openai has unknown",
        ),
    ],
)
def test_refuses_what_it_cannot_measure(
    pytester: pytest.Pytester, arguments: tuple[str, ...], line: str
) -> None:
    pytester.makepyfile(test_gate=GATES.format(metric="output_tps"))
    result = pytester.runpytest("-p", "no:cacheprovider", "--speedbench-engine=openai", *arguments)
    assert line in result.stdout.str() + result.stderr.str()
    assert result.ret != 0
