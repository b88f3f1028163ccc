"""guidellm: what it measures of the server is what `gyrfalcon load` measures, within 10 % or 3 ms."""

import json
import sys
from pathlib import Path

from serve_checks.context import Context, run_client
from serve_checks.environment import environment
from serve_checks.report import Report
from serve_checks.server import serving

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "load_guidellm.py"
OPTIONS = ("--max-len", "512", "--threads", "1")
LOAD = ("--rate", "9", "--requests", "90", "--rounds", "2")


def run(context: Context, report: Report) -> None:
    """Takes turns, as benchmarks/load_guidellm.py does, on an idle machine. The rate keeps the server busy:
    guidellm's workers poll, so that no core sleeps, which shortens first tokens at low rates.
    """
    client = environment("guidellm", context.environments, borrows=True)
    report.versions |= client.versions
    out = context.folder / "rounds.json"
    with serving(context.folder, "nestling", *OPTIONS) as server:
        command = [sys.executable, str(SCRIPT), "--guidellm", client.command("guidellm")]
        done = run_client([*command, "--url", server.url, "--json", str(out), *LOAD], 600)
    if not out.is_file():
        raise RuntimeError(f"wanted a result of guidellm, got {done.stderr[-500:]}")
    medians = json.loads(out.read_text("utf-8"))["medians"]
    report.figure("medians", medians)
    ours, theirs = medians["gyrfalcon"], medians["guidellm"]
    num = int(LOAD[3])
    both = ours["finished"], theirs["finished"]
    report.claim(f"guidellm finishes all {num} requests", both == (num, num), both)
    differing = [line for line in done.stdout.splitlines() if "differs" in line]
    report.claim("both measure the same", done.returncode == 0, differing)
