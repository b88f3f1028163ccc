"""A rank is killed under load: everybody is answered, the server ends with exit code 1, and both soon."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Sequence

import psutil

from serve_checks.asking import Reply, Streamed, post, stream
from serve_checks.context import Context
from serve_checks.report import Report
from serve_checks.server import Server, serving

NUM_STREAMS = NUM_WHOLE = 16
NUM_TOKENS = 1500
MOST_SECONDS, EXIT_CODE = 10.0, 1
RANK = "spawn_main"  # in the command line of a rank that torch.multiprocessing starts
BODY = {"model": "nestling", "max_tokens": NUM_TOKENS, "ignore_eos": True, "temperature": 0}


def run(context: Context, report: Report) -> None:
    """Kills each rank that is a process of its own, each of another server."""
    for victim in (0, 1):
        with serving(context.folder, "nestling", "-w", "2", "--threads", "1") as server:
            ranks = _ranks(server)
            if victim < len(ranks):
                _kill_under_load(server, ranks[victim], report, f"rank process {victim + 1}")


def _ranks(server: Server) -> list[psutil.Process]:
    return [one for one in server.processes()[1:] if RANK in " ".join(one.cmdline())]


def _kill_under_load(server: Server, rank: psutil.Process, report: Report, name: str) -> None:
    ends, killed, answered = asyncio.run(_load(server, rank))
    code = server.process.wait(60)
    seconds = time.monotonic() - killed
    report.figure(f"{name}_seconds_to_last_answer", round(answered - killed, 2))
    report.figure(f"{name}_seconds_to_exit", round(seconds, 2))
    report.figure(f"{name}_answers", dict(Counter(ends)))
    unanswered = [end for end in ends if end.startswith("none")]
    report.claim(
        f"{name} killed: all {len(ends)} requests are answered", not unanswered, unanswered[:2]
    )
    cut = [end for end in ends if end not in ("error", "500", "503")]
    report.claim("each of them by an error", not cut, cut[:2])
    report.claim(f"exit code {EXIT_CODE}", code == EXIT_CODE, code)
    report.claim(f"in less than {MOST_SECONDS:g} s", seconds < MOST_SECONDS, f"{seconds:.1f} s")


async def _load(server: Server, rank: psutil.Process) -> tuple[list[str], float, float]:
    """How each request ended, when the rank was killed, and when the last was answered."""
    streams = [Streamed() for _ in range(NUM_STREAMS)]
    asked = [
        stream(server.port, "/v1/completions", BODY | {"prompt": f"Ship {number}"}, into)
        for number, into in enumerate(streams)
    ]
    whole = [post(server.port, "/v1/completions", BODY | {"prompt": "A"}) for _ in range(NUM_WHOLE)]
    waiting = asyncio.gather(*asked, *whole, return_exceptions=True)
    while not all(len(one.times) > 2 for one in streams) and not waiting.done():
        await asyncio.sleep(0.01)
    killed = time.monotonic()
    os.kill(rank.pid, signal.SIGKILL)
    ends = _ends(await waiting)
    return ends, killed, time.monotonic()


def _ends(found: Sequence[object]) -> list[str]:
    ends = []
    for one in found:
        if isinstance(one, Reply):
            ends.append(str(one.status))
        elif isinstance(one, Streamed):
            whole = "whole" if one.is_whole else "none: cut off"
            ends.append("error" if one.error else whole)
        else:
            ends.append(f"none: {type(one).__name__} {one}")
    return ends
