"""Ten times as many requests as the server can answer: it answers as many as before and refuses the rest.

The server computes with one thread, which leaves a core of the machine to the generator. Answers are long, as
users ask for them: nestling would else answer so many requests a second that this measures the generator.
"""

import json
import subprocess
import sys
from typing import Any

from serve_checks.context import Context
from serve_checks.environment import clean_environ
from serve_checks.memory import claim_steady, sampled
from serve_checks.report import Report
from serve_checks.server import Server, serving, wait_until

Figures = Any  # of `gyrfalcon load`, as it writes them
MINUTES, CAPACITY_SECONDS = 10.0, 20.0
FACTOR = 10.0
CONCURRENCY = 64  # as many sequences as run at once
LEAST_GOODPUT, MOST_REFUSAL_MS = 0.9, 50.0
LENGTHS = ("--in", "64", "--out", "400")
BODY = json.dumps({"ignore_eos": True, "temperature": 0})
OPTIONS = (
    *("--max-len", "512", "--threads", "1"),
    *("--cache-memory", "128MB", "--max-queued-tokens", "4096"),
)


def run(context: Context, report: Report) -> None:
    """Measures the capacity in a closed loop, then sends ten times as much in an open one."""
    seconds = 60 * (context.minutes or MINUTES)
    report.figure("overload_seconds", seconds)
    with serving(context.folder, "nestling", *OPTIONS) as server:
        loop = ("--concurrency", str(CONCURRENCY), "--duration", f"{CAPACITY_SECONDS:g}")
        capacity = _load(context, server, *loop, "--seed", "1")
        report.figure("capacity_requests_per_second", round(capacity["finished_per_second"], 2))
        rate = FACTOR * capacity["finished_per_second"]
        with sampled(server) as samples:
            asked = ("--rate", f"{rate:.3f}", "--duration", f"{seconds:g}")
            found = _load(context, server, *asked, "--seed", str(context.seed + 2))
        _claims(report, capacity, found)
        claim_steady(report, samples)
        report.claim("no cache block is lost", wait_until(server.is_idle, 10))
        report.claim("the server ends with exit code 0", server.stop() == 0)


def _claims(report: Report, capacity: Figures, found: Figures) -> None:
    for name in ("sent", "finished", "refused", "failed"):
        report.figure(name, found[name])
    report.figure("sent_per_second", round(found["sent_per_second"], 2))
    report.figure("generator_late_p99_ms", round(found["generator"]["late_ms"]["p99"], 2))
    per_second = [one["tokens"]["output_per_second"] for one in (capacity, found)]
    report.figure("tokens_per_second", [round(one, 1) for one in per_second])
    share = per_second[1] / per_second[0]
    report.claim(
        f"goodput is at least {LEAST_GOODPUT:.0%} of the capacity",
        share >= LEAST_GOODPUT,
        f"{share:.1%}",
    )
    refusal = found["refusal_ms"] or {"p50": 0.0, "p99": float("inf")}
    report.figure("refusal_p50_ms", round(refusal["p50"], 2))
    report.claim(
        f"99 % of refusals take at most {MOST_REFUSAL_MS:g} ms",
        refusal["p99"] <= MOST_REFUSAL_MS,
        f"{refusal['p99']:.1f} ms",
    )
    answered = found["finished"] + found["refused"]
    others = [one["reason"] for one in found["errors"] if one["status"] != 429]
    report.claim(
        "every request is answered or refused", answered == found["sent"], others[:3] or answered
    )


def _load(context: Context, server: Server, *options: str) -> Figures:
    """The figures of one run of `gyrfalcon load`."""
    out = context.folder / "load.json"
    command = [sys.executable, "-m", "gyrfalcon", "load", server.url, *LENGTHS, *options]
    command += ["--extra-body", BODY, "--json", str(out)]
    subprocess.run(command, env=clean_environ(), check=True, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text("utf-8"))["result"]
