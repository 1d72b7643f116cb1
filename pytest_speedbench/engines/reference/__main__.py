"""Command line of the embedded engine: `python -m pytest_speedbench.engines.reference --port P`."""

from __future__ import annotations

import argparse
import asyncio
import errno
import math
import signal
import sys
from collections.abc import Callable, Sequence

from pytest_speedbench.engines.reference.clock import Accelerator
from pytest_speedbench.engines.reference.decoding import METHODS

FAULTS = {
    "crash": "the process ends with status 70 in the middle of a response",
    "stall": "a response stops coming, its connection stays open",
    "drop": "the connection closes in the middle of a response",
    "no-counters": "neither responses nor /metrics count speculative decoding",
    "loop": "the output repeats its last four tokens for ever, and every draft is accepted",
    "slow-start": "/health answers 503 to the first N calls, and nothing is generated until then",
    "http-500": "generations are refused with status 500",
}


def parser() -> argparse.ArgumentParser:
    """The options of the server."""
    faults = "; ".join(f"{name}: {what}" for name, what in FAULTS.items())
    options = argparse.ArgumentParser(
        prog="python -m pytest_speedbench.engines.reference", description=__doc__, allow_abbrev=False
    )
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=_whole(0, 65535), default=8000, help="0 for a free one")
    options.add_argument("--method", choices=METHODS, default="draft_model")
    options.add_argument(
        "--draft-length", type=_whole(1, 64), default=3, metavar="K", help="tokens per draft"
    )
    options.add_argument("--seed", type=int, default=0, help="of all sampling, with each request's own seed")
    options.add_argument(
        "--draft-quality",
        type=_quality,
        default=1.0,
        metavar="Q",
        help="in (0, 1]: multiplies the draft model's acceptance rate; a lookup has no quality",
    )
    options.add_argument(
        "--step-slowdown",
        type=_positive,
        default=1.0,
        metavar="F",
        help="multiplies the latency of each step",
    )
    options.add_argument("--fault", choices=FAULTS, help=faults)
    options.add_argument(
        "--fault-after",
        type=_whole(0, 2**63),
        default=0,
        metavar="N",
        help="serve N generations rightly first (slow-start: refuse N health checks)",
    )
    options.add_argument("--max-model-len", type=_whole(2, 2**31), default=131_072, help="tokens")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        asyncio.run(_serve(options))
    except OSError as error:
        reason = "address already in use" if error.errno == errno.EADDRINUSE else error.strerror
        print(f"reference engine: cannot serve {options.host}:{options.port}: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


async def _serve(options: argparse.Namespace) -> None:
    from aiohttp import web

    from pytest_speedbench.engines.reference.server import Options, Server

    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    server = Server(
        Options(
            method=options.method,
            draft_length=options.draft_length,
            seed=options.seed,
            draft_quality=options.draft_quality,
            fault=options.fault,
            fault_after=options.fault_after,
            max_model_len=options.max_model_len,
            accelerator=Accelerator(slowdown=options.step_slowdown),
        )
    )
    # Without handler_cancellation a request whose client has gone would keep its place in the batch.
    runner = web.AppRunner(
        server.application(),
        access_log=None,
        handle_signals=False,
        handler_cancellation=True,
        shutdown_timeout=0.1,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, options.host, options.port)
        await site.start()
        host, port = runner.addresses[0][:2]
        print(f"reference engine: serving http://{host}:{port}", flush=True)
        await stop.wait()
    finally:
        await runner.cleanup()


def _whole(least: int, most: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        number = int(text)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
        return number

    convert.__name__ = "integer"
    return convert


def _positive(text: str) -> float:
    number = float(text)
    if not 0.0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _quality(text: str) -> float:
    number = float(text)
    if not 0.0 < number <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1]")
    return number


if __name__ == "__main__":
    sys.exit(main())
