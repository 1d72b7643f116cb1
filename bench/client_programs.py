"""Clients of our own that `bench/client.py` runs in a process each: the plugin's, and one that parses at once.

    python -m bench.client_programs ours|aiohttp --url URL --streams N --chunks N --out FILE

Both write what they recorded to FILE, and print what that writing cost, so that it can be taken off again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any


def ours(url: str, streams: int, chunks: int) -> dict[str, Any]:
    """The plugin's own client and metrics, from prompts to the finished measurement of a cell.

    When each token came is to be called for: to lay it out is no part of what a measurement takes.
    """
    from pytest_speedbench.cells import Cell
    from pytest_speedbench.data.prompts import Prompt
    from pytest_speedbench.engines.control import Control
    from pytest_speedbench.engines.reference.engine import ReferenceEngine
    from pytest_speedbench.load.conversation import prepare
    from pytest_speedbench.load.driver import run_round
    from pytest_speedbench.load.plan import RoundPlan
    from pytest_speedbench.metrics.combine_rounds import combine
    from pytest_speedbench.metrics.one_round import measure_round
    from pytest_speedbench.settings.target import Sampling, Target

    engine = ReferenceEngine(Target(name="bench", engine="reference", method="none", draft_length=0))
    prompts = [Prompt(f"stream {number}", "mixed", ("Say yes.",)) for number in range(streams)]
    with closing(Control(url)) as control:
        prepared = prepare(engine, control, prompts, Sampling.exactly(chunks))
        record = run_round(engine, url, prepared, RoundPlan(streams))
    measurement = combine(
        Cell("throughput_1k", "mixed", streams), "none", [measure_round("none", record, prompts)]
    )

    def arrived_s() -> dict[int, list[float]]:
        return {
            request.token_ids[0]: [a.received_s for a in request.arrivals for _ in range(a.tokens)]
            for request in record.requests
            if request.error is None and request.token_ids
        }

    return {
        "output_tps": measurement.metrics.get("output_tps"),
        "inter_token_latency_s_p99": measurement.metrics.get("inter_token_latency_s_p99"),
        "problems": [*measurement.problems, *([measurement.overload] if measurement.overload else [])],
        "notes": list(measurement.notes),
        "client_busy": record.client_busy,
        "arrived_s": arrived_s,
    }


async def parse_at_once(url: str, streams: int, chunks: int) -> dict[str, Any]:
    """aiohttp, a task for each stream, every event parsed as it comes, and stamped once it is: the usual way."""
    import aiohttp
    import numpy as np

    texts: dict[int, str] = {}
    arrived_s: dict[int, list[float]] = {}

    async def stream(session: aiohttp.ClientSession) -> int:
        body = {
            "model": "loopback",
            "prompt": "Say yes.",
            "max_tokens": chunks,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        text, stamps_s, tokens = "", [], 0
        async with session.post(f"{url}/v1/completions", json=body) as response:
            response.raise_for_status()
            rest = ""
            async for data in response.content.iter_any():
                *events, rest = (rest + data.decode()).split("\n\n")
                for event in events:
                    payload = event.removeprefix("data: ")
                    if payload == "[DONE]":
                        continue
                    chunk = json.loads(payload)
                    if chunk["choices"]:
                        text += chunk["choices"][0]["text"]
                        stamps_s.append(time.monotonic())
                    if usage := chunk.get("usage"):
                        tokens = usage["completion_tokens"]
        number = int(text.split()[0])
        texts[number], arrived_s[number] = text, stamps_s
        return tokens

    began_s = time.monotonic()
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        tokens = sum(await asyncio.gather(*(stream(session) for _ in range(streams))))
    ended_s = time.monotonic()
    gaps_s = np.concatenate([np.diff(stamps_s) for stamps_s in arrived_s.values()])
    return {
        "output_tps": tokens / (ended_s - began_s),
        "inter_token_latency_s_p99": float(np.percentile(gaps_s, 99)),
        "arrived_s": arrived_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="A client of our own against a loopback server.")
    parser.add_argument("client", choices=["ours", "aiohttp"])
    parser.add_argument("--url", required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--chunks", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    what = (options.url, options.streams, options.chunks)
    told = ours(*what) if options.client == "ours" else asyncio.run(parse_at_once(*what))
    writing_s = -time.process_time()
    if callable(told["arrived_s"]):
        told["arrived_s"] = told["arrived_s"]()
    options.out.write_text(json.dumps(told))
    print(writing_s + time.process_time())


if __name__ == "__main__":
    main()
