"""What a stream client costs and how late it is: the plugin's own beside those of others, on one loopback server.

    python -m bench.client [--repeats 3] [--clients ours,aiohttp,vllm,sglang,guidellm,aiperf]

Run from the root of the checkout. The same server, the same streams, each client in turn, `--repeats` times; prints
Markdown tables. Clients that are not installed are installed into the cache that `tests/real/install.py` uses
(minutes and gigabytes the first time); one that cannot be had is left out, and the reason is given.

Processor time is that of a client with all processes that it starts, user and system, as the operating system counts
it, from the first requests to the client's end: connections, chunks, parsing and statistics are in it, start-up and
imports are not. Lag is that of the time in which all streams send.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import client_peers as peers
from bench.client_peers import PARSE_AT_ONCE, Client, Told
from pytest_speedbench.selftest.server import Loopback, Sent, serving

CLIENTS: dict[str, Callable[[argparse.Namespace], Client]] = {
    "ours": lambda options: peers.ours(),
    "aiohttp": lambda options: peers.parse_at_once(),
    "vllm": lambda options: peers.vllm(),
    "sglang": lambda options: peers.sglang(),
    "guidellm": lambda options: peers.guidellm(options.guidellm),
    "aiperf": lambda options: peers.aiperf(options.aiperf),
}
FIRST_REQUESTS = 2
"""The first one may be a trial, long before the others."""
FLOOD_CHUNKS = 2000
SERVER_PROCESSES = 2
_TIMEOUT_S = 600
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Load:
    """What the server is told to send."""

    streams: int
    rate: float
    """Chunks per second of each stream."""

    def __str__(self) -> str:
        return f"{self.streams} streams x {self.rate:g} chunks/s"


@dataclass(frozen=True)
class Measured:
    """One run of one client, beside the server's own account."""

    cpu_us_per_chunk: float
    """Microseconds, of the client and all that it started; without what it took to write details down."""
    told: Told
    sent_tps: float
    """From the arrival of the first request to the last chunk."""
    sent_itl_s_p99: float
    lags_s: tuple[float, float] | None
    """Median and 99th percentile, from the server's stamp to the client's, while all streams sent."""


@dataclass(frozen=True)
class Row:
    """Several runs of one client under one load."""

    client: Client
    runs: tuple[Measured, ...]

    @property
    def cpu_us(self) -> float:
        """Median processor time of a chunk, in microseconds."""
        return statistics.median(run.cpu_us_per_chunk for run in self.runs)

    def middle(self, of: Callable[[Measured], float | None]) -> float | None:
        """Median over the runs; None where no run tells."""
        told = [value for run in self.runs if (value := of(run)) is not None]
        return statistics.median(told) if told else None


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare stream clients on one loopback server.")
    parser.add_argument("--clients", default=",".join(CLIENTS), help="which, by comma")
    parser.add_argument(
        "--loads",
        type=_loads,
        default="64x50,512x50,512x100",
        help="streams x chunks/s of each, by comma (%(default)s)",
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--guidellm", type=Path, metavar="PYTHON", help="interpreter that has GuideLLM")
    parser.add_argument("--aiperf", type=Path, metavar="PYTHON", help="interpreter that has aiperf")
    options = parser.parse_args()
    unknown = set(options.clients.split(",")) - set(CLIENTS)
    if unknown:
        parser.error(f"--clients: {', '.join(sorted(unknown))} unknown; there are {', '.join(CLIENTS)}")
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # whoever outlives its parent is counted too
    load_average = os.getloadavg()[0]
    clients: list[Client] = []
    left_out: list[str] = []
    for name in options.clients.split(","):
        try:
            clients.append(CLIENTS[name](options))
        except (subprocess.CalledProcessError, OSError, SystemExit) as error:
            left_out.append(f"{name} could not be installed: {error}")
    rows: dict[tuple[str, Load], list[Measured]] = {}
    for repeat in range(options.repeats):
        for client in [*clients[repeat % len(clients) :], *clients[: repeat % len(clients)]]:
            try:
                for load in options.loads:
                    run = measure(client, load.streams, round(load.rate * options.seconds), load.rate)
                    done = f"{repeat + 1}/{options.repeats} {client.name}, {load}"
                    _say(f"{done}: {run.cpu_us_per_chunk:.1f} us a chunk")
                    if run.told.problems:
                        raise RuntimeError(f"{load}: {'; '.join(run.told.problems)}")
                    rows.setdefault((client.name, load), []).append(run)
            except RuntimeError as error:
                left_out.append(f"{client.name}, run {repeat + 1}: {error}")
    print(heading(options, clients, load_average))
    tables: dict[Load, list[Row]] = {}
    for load in options.loads:
        tables[load] = [
            Row(client, tuple(found)) for client in clients if (found := rows.get((client.name, load)))
        ]
        print(f"\n### {load} x {options.seconds:g} s\n")
        print("\n".join(table_lines(tables[load], load.streams * load.rate)))
    if "ours" in options.clients.split(","):
        print("\n### What must hold\n")
        print("\n".join(proof_lines(tables)))
        print("\n### A server faster than the client can take\n")
        print(flooded(clients[0], options.loads[-1].streams))
    for reason in left_out:
        print(f"\nLeft out: {reason}")


def _loads(text: str) -> list[Load]:
    loads = []
    for one in text.split(","):
        streams, _, rate = one.partition("x")
        loads.append(Load(int(streams), float(rate)))
    return loads


def measure(client: Client, streams: int, chunks: int, rate: float | None, processes: int = 2) -> Measured:
    """One run, against a server of its own.

    Raises:
        RuntimeError: the client failed; the message ends with what it said last.
    """
    with serving(rate, processes=processes) as server, tempfile.TemporaryDirectory() as folder:
        run = peers.Run(server.url, streams, chunks, Path(folder))
        said, cpu_s = run_tree(client, run, server)
        try:
            told = client.read(run, said)
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise RuntimeError(f"its result cannot be read: {error!r}; {_last_words(run)}") from None
        sent = of_this_run(server, chunks)
    if len(sent.stamps_s) != streams:
        raise RuntimeError(f"the server sent {len(sent.stamps_s)} whole streams, not {streams}")
    gaps_s = np.concatenate([np.diff(stamps_s) for stamps_s in sent.stamps_s.values()])
    return Measured(
        cpu_us_per_chunk=1e6 * (cpu_s - told.writing_s) / sent.chunks,
        told=told,
        sent_tps=sent.chunks / sent.seconds,
        sent_itl_s_p99=float(np.percentile(gaps_s, 99)),
        lags_s=lags_s(sent, told),
    )


def of_this_run(server: Loopback, chunks: int) -> Sent:
    """What was sent, without the trial requests that some clients begin with."""
    sent = server.sent()
    whole = {number: stamps_s for number, stamps_s in sent.stamps_s.items() if len(stamps_s) == chunks}
    asked_s = {number: sent.asked_s[number] for number in whole}
    return Sent(whole, asked_s, sent.cpu_s, sent.held_up)


def lags_s(sent: Sent, told: Told) -> tuple[float, float] | None:
    """Median and 99th percentile of the lag; None where the client does not tell when its tokens came.

    Raises:
        RuntimeError: the client tells of other tokens than those that were sent.
    """
    lags = []
    for number, arrived_s in told.arrived_s.items():
        stamps_s = sent.stamps_s[number]
        if len(arrived_s) != len(stamps_s):
            raise RuntimeError(f"it tells of {len(arrived_s)} tokens of a stream of {len(stamps_s)}")
        lags.append((np.array(arrived_s) - np.array(stamps_s))[np.array(stamps_s) >= sent.full_s])
    if not lags:
        return None
    median_s, p99_s = np.percentile(np.concatenate(lags), [50, 99])
    return float(median_s), float(p99_s)


def run_tree(client: Client, run: peers.Run, server: Loopback) -> tuple[str, float]:
    """Run a client to its end.

    Returns:
        Its standard output; processor seconds of all its processes since the first requests.

    Raises:
        RuntimeError: it failed, or took longer than ten minutes.
    """
    others = _children()
    environment = {**os.environ, **client.environment}
    with open(run.folder / "stdout", "w") as out, open(run.folder / "stderr", "w") as err:
        process = subprocess.Popen(
            client.command(run),
            stdout=out,
            stderr=err,
            env=environment,
            cwd=run.folder,
            start_new_session=True,
        )
        signal.signal(signal.SIGALRM, lambda *_: os.killpg(process.pid, signal.SIGKILL))
        signal.alarm(_TIMEOUT_S)
        before_s = 0.0
        while server.requests() < FIRST_REQUESTS and process_runs(process.pid):
            before_s = spent_s(_children() - others)
            time.sleep(0.01)
        _, status, usage = os.wait4(process.pid, 0)
        signal.alarm(0)
        process.returncode = os.waitstatus_to_exitcode(status)
    cpu_s = usage.ru_utime + usage.ru_stime
    deadline_s = time.monotonic() + 5
    while orphans := _children() - others:
        for orphan in orphans:
            if time.monotonic() > deadline_s:
                os.kill(orphan, signal.SIGKILL)
            pid, _, usage = os.wait4(orphan, 0 if time.monotonic() > deadline_s else os.WNOHANG)
            if pid:
                cpu_s += usage.ru_utime + usage.ru_stime
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"it ended with status {process.returncode}: {_last_words(run)}")
    return (run.folder / "stdout").read_text(), cpu_s - before_s


def process_runs(pid: int) -> bool:
    """Whether a child of ours has not ended yet."""
    import psutil

    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def spent_s(roots: Iterable[int]) -> float:
    """Processor seconds of some processes and all below them, those that have ended included."""
    import psutil

    seconds = 0.0
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            for process in (parent := psutil.Process(root), *parent.children(recursive=True)):
                seconds += sum(process.cpu_times()[:4])
    return seconds


def _children() -> set[int]:
    import psutil

    return {child.pid for child in psutil.Process().children()}


def _last_words(run: peers.Run) -> str:
    lines = (run.folder / "stderr").read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def heading(options: argparse.Namespace, clients: Sequence[Client], load_average: float) -> str:
    """What was measured with what."""
    versions = ", ".join(f"{client.name} {client.version}" for client in clients)
    return (
        f"{processor()}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}; "
        f"load average {load_average:.1f} before the first run.\n"
        f"{versions}.\nMedians of {options.repeats} runs, for the processor time with the least and the most; server of "
        f"{SERVER_PROCESSES} processes, all streams sending together."
    )


def processor() -> str:
    """What the operating system calls this machine's processor."""
    with open("/proc/cpuinfo") as told:
        names = [line.partition(":")[2].strip() for line in told if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table_lines(rows: Sequence[Row], offered_tps: float) -> list[str]:
    """A Markdown table; ratios are to the first row.

    Args:
        rows: under one load.
        offered_tps: what the server would send if all streams began at once.
    """
    lines = [
        "| client | CPU us/chunk | ratio | lag p50 / p99 ms | TPS reported | of the server's count | of the offered rate "
        "| ITL p99 ms, reported / sent |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cpu_us = sorted(run.cpu_us_per_chunk for run in row.runs)
        itl_s_p99 = row.middle(lambda run: run.told.inter_token_latency_s_p99)
        lag_s_p50 = row.middle(lambda run: run.lags_s and run.lags_s[0])
        lag_s_p99 = row.middle(lambda run: run.lags_s and run.lags_s[1])
        cells = [
            row.client.name,
            f"{row.cpu_us:.1f} ({cpu_us[0]:.1f}-{cpu_us[-1]:.1f})",
            f"{row.cpu_us / rows[0].cpu_us:.1f}",
            "-" if lag_s_p99 is None else f"{_ms(lag_s_p50)} / {_ms(lag_s_p99)}",
            f"{row.middle(lambda run: run.told.output_tps):,.0f}",
            f"{row.middle(lambda run: run.told.output_tps / run.sent_tps):.1%}",
            f"{row.middle(lambda run: run.told.output_tps / offered_tps):.1%}",
            f"{_ms(itl_s_p99)} / {_ms(row.middle(lambda run: run.sent_itl_s_p99))}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def proof_lines(tables: Mapping[Load, Sequence[Row]]) -> list[str]:
    """A Markdown table of what the client promises, as far as it was measured.

    Args:
        tables: rows by load.
    """
    lines = ["| what | must show | measured | holds |", "|---|---|---|---|"]

    def add(what: str, must: str, value: float | None, limit: float, shown: str) -> None:
        if value is not None:
            lines.append(f"| {what} | {must} | {shown.format(value)} | {'yes' if value <= limit else 'NO'} |")

    for load, rows in tables.items():
        at = f" ({load.streams} x {load.rate:g}/s)"
        by_name = {row.client.name: row for row in rows}
        ours = by_name.get("ours")
        if ours is None:
            continue
        for name, share in (("vllm bench serve", 3), ("GuideLLM", 8)):
            if name in by_name:
                ratio = ours.cpu_us / by_name[name].cpu_us
                add(f"CPU per chunk{at}, to {name}", f"<= 1/{share}", ratio, 1 / share, "{:.3f}")
        lag_s = ours.middle(lambda run: run.lags_s and run.lags_s[1])
        usual = by_name.get(PARSE_AT_ONCE)
        usual_lag_s = usual and usual.middle(lambda run: run.lags_s and run.lags_s[1])
        if lag_s is not None:
            if usual_lag_s:
                add(f"lag p99{at}, to {PARSE_AT_ONCE}", "<= 1/3", lag_s / usual_lag_s, 1 / 3, "{:.3f}")
            add(f"lag p99{at}, on a quiet machine", "< 5 ms", 1e3 * lag_s, 5.0, "{:.2f} ms")
        tps_off = ours.middle(lambda run: abs(run.told.output_tps / run.sent_tps - 1))
        add(f"reported TPS{at}, off the server's count", "<= 1 %", tps_off, 0.01, "{:.2%}")
        itl_off = ours.middle(
            lambda run: abs((run.told.inter_token_latency_s_p99 or 0.0) / run.sent_itl_s_p99 - 1)
        )
        add(f"inter-token latency p99{at}, off the truth", "<= 5 %", itl_off, 0.05, "{:.1%}")
    return lines


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.2f}"


def flooded(client: Client, streams: int) -> str:
    """What our client says of a server that sends as fast as the sockets take it."""
    run = measure(client, streams, FLOOD_CHUNKS, None, processes=3)
    verdict = (
        f"invalid: {'; '.join(run.told.problems)}" if run.told.problems else "VALID, which it must not be"
    )
    return (
        f"{streams} streams, {run.sent_tps:,.0f} chunks/s sent by 3 processes without pause; the client computed "
        f"{run.told.busy or 0:.0%} of the time. The cell is {verdict}."
    )


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
