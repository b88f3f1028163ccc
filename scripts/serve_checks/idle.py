"""A server that has answered and waits takes next to no processor time, with one rank and with two."""

import asyncio
import time

import psutil

from serve_checks.asking import post
from serve_checks.context import Context
from serve_checks.report import Report
from serve_checks.server import Server, serving, wait_until

SECONDS = 20.0
BANDWIDTH, MEASURING_SECONDS = "gyrfalcon:memory_bandwidth_bytes_per_second", 60.0
SETTLING_SECONDS = 3.0  # threads that have measured it go on waiting for work for a moment
MOST_PERCENT = 1.0  # of a core, for each process
OPTIONS = ("--max-len", "256", "--threads", "1", "--served-model-name", "served")
BODY = {"model": "served", "prompt": "The old captain", "max_tokens": 8, "temperature": 0}


def run(context: Context, report: Report) -> None:
    """Watches each process after an answer, with no connection open, when the memory's bandwidth has been
    measured, which the first look at the metrics begins.
    """
    for num_ranks in (1, 2):
        options = (*OPTIONS, *context.options, "-w", str(num_ranks))
        with serving(context.folder, context.model, *options) as server:
            reply = asyncio.run(post(server.port, "/v1/completions", BODY))
            report.claim(f"{num_ranks} ranks: an answer", reply.status == 200, reply.status)
            report.claim(f"{num_ranks} ranks: then idle", wait_until(server.is_idle, 10))
            wait_until(lambda server=server: BANDWIDTH in server.metrics(), MEASURING_SECONDS)  # type: ignore[misc]
            time.sleep(SETTLING_SECONDS)
            percents = _percents(server)
            report.figure(f"cpu_percent_{num_ranks}_ranks", percents)
            report.claim(
                f"{num_ranks} ranks: at most {MOST_PERCENT:g} % of a core a process",
                max(percents) <= MOST_PERCENT,
                percents,
            )


def _percents(server: Server) -> list[float]:
    """Processor time of each process, in percent of the time that passes."""
    before = [(one, _cpu_seconds(one)) for one in server.processes()]
    begin = time.monotonic()
    time.sleep(SECONDS)
    passed = time.monotonic() - begin
    return [round(100 * (_cpu_seconds(one) - spent) / passed, 2) for one, spent in before]


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
