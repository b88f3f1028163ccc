"""Schemathesis: requests that it makes from /openapi.json, right and wrong ones; no 5xx, no status that the
document does not have.
"""

import re
from pathlib import Path

from serve_checks.context import Context, run_client
from serve_checks.environment import environment
from serve_checks.models import chat_model
from serve_checks.report import Report
from serve_checks.server import Server, serving, wait_until

NUM_CASES, SEEDS = 200, 3
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
OPTIONS = ("--max-len", "64", "--threads", "1", "--cache-memory", "16MB")
SECONDS = 720


def run(context: Context, report: Report) -> None:
    """Runs it with each seed."""
    client = environment("schemathesis", context.environments)
    report.versions |= client.versions
    with serving(context.folder, chat_model(context.folder), *OPTIONS) as server:
        for seed in range(context.seed + 1, context.seed + 1 + SEEDS):
            command = [client.command("schemathesis"), "run", f"{server.url}/openapi.json"]
            _run_seed(command, context.folder, report, seed)
        report.claim("no cache block is lost", wait_until(server.is_idle, 20))
        statuses = _statuses(server)
        report.figure("statuses_refused", statuses)
        report.claim(
            "no answer was a 5xx", not any(one.startswith("5") for one in statuses), statuses
        )
        report.claim("the server ends with exit code 0", server.stop() == 0)


def _run_seed(command: list[str], folder: Path, report: Report, seed: int) -> None:
    options = ["--max-examples", str(NUM_CASES), "--seed", str(seed), "--checks", CHECKS]
    options += ["--continue-on-failure", "--no-color", "--request-timeout", "60"]
    done = run_client([*command, *options], SECONDS, folder)
    text = done.stdout
    found = re.search(r"(\d+) generated", text.replace(",", ""))
    report.figure(f"cases_seed_{seed}", int(found[1]) if found else None)
    failures = text.partition("= FAILURES =")[2] or text[-400:]
    report.claim(
        f"seed {seed}: it finds nothing", done.returncode == 0, failures if done.returncode else ""
    )


def _statuses(server: Server) -> dict[str, int]:
    """How many answers were errors, by status, as the server counts them."""
    lines = server.get("/metrics").decode().splitlines()
    found = (
        re.match(r'gyrfalcon:refusals_total\{status="(\d+)"\} ([\d.]+)', line) for line in lines
    )
    return {match[1]: int(float(match[2])) for match in found if match}
