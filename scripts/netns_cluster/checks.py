"""What has to hold of gyrfalcon on several hosts."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from checkpoints import make_checkpoint
from serve_checks.report import Report

from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.plan.prediction import moved_bytes
from gyrfalcon.plan.work import work_of
from netns_cluster.hosts import Host
from netns_cluster.job import Job, job
from netns_cluster.probe import STREAMS

LAYOUTS = ((2, 1), (2, 2), (3, 1))  # hosts, ranks of each
RATES = {"20mbit": 20e6, "50mbit": 50e6, "200mbit": 200e6}  # bits a second
PROMPT = "The falcon"
ENDLESS = ("generate", "nestling", PROMPT, "--max-new-tokens", "4000", "--ignore-eos")
KILLED_SECONDS, SILENT_SECONDS = 2.0, 12.0
GREATEST_LOGIT, BYTES_SHARE, TIME_SHARE = 1e-4, 0.05, 0.2

ASK = """
import json, sys, urllib.request
_, url, body = sys.argv
asked = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(asked))["usage"]["completion_tokens"])
"""

Check = Callable[[Sequence[Host], Path, Report], None]


def wide_model(folder: Path) -> Path:
    """A model whose all-reduces in float32 are about as long as Falcon-7B's in bfloat16, and little else."""
    return make_checkpoint(
        folder / "wide",
        "40b",
        num_hidden_layers=6,
        hidden_size=2048,
        num_attention_heads=32,
        num_kv_heads=2,
        ffn_hidden_size=512,
    )


def equality(hosts: Sequence[Host], folder: Path, report: Report) -> None:
    """Greedy tokens and logits of each layout are those of one process, and the same bits again."""
    model = wide_model(folder)
    logits, tokens = _alone(model, folder)
    for num_hosts, ranks in LAYOUTS:
        name = f"{num_hosts} x {ranks}"
        first, again = (_probed(hosts[:num_hosts], ranks, model, folder) for _ in range(2))
        report.claim(f"{name}: greedy tokens of one process", first["tokens"] == tokens)
        greatest = float((first["logits"] - logits).abs().max())
        report.claim(
            f"{name}: logits within {GREATEST_LOGIT}", greatest <= GREATEST_LOGIT, greatest
        )
        same = torch.equal(first["logits"], again["logits"]) and first["tokens"] == again["tokens"]
        report.claim(f"{name}: bit for bit the same again", same)


def wire(hosts: Sequence[Host], folder: Path, report: Report) -> None:
    """A token sends as many bytes as plan says, and takes as much longer as they take."""
    model, pair = wide_model(folder), hosts[:2]
    work = work_of(open_checkpoint(model).config, 2, "fp32", "none", False)
    planned = moved_bytes(work, STREAMS)
    unshaped = _probed(pair, 1, model, folder)
    share = unshaped["sent_bytes"] / planned - 1
    got = f"{unshaped['sent_bytes'] / STREAMS:,.0f} bytes a token, {share:+.1%}"
    report.claim(f"within {BYTES_SHARE:.0%} of plan's", abs(share) <= BYTES_SHARE, got)
    before = _undisturbed(unshaped["seconds"])
    report.figure("unshaped_step_ms", round(1000 * before, 1))
    for rate, bits in RATES.items():
        for host in pair:
            host.shape(rate)
        try:
            shaped = _undisturbed(_probed(pair, 1, model, folder)["seconds"])
        finally:
            for host in pair:
                host.shape(None)
        expected = 8 * planned / bits
        got = f"{1000 * (shaped - before):.1f} ms a step, {1000 * expected:.1f} expected"
        near = abs(shaped - before - expected) <= TIME_SHARE * expected
        report.claim(f"{rate}: added time within {TIME_SHARE:.0%} of bytes / rate", near, got)


def _undisturbed(seconds: Sequence[float]) -> float:
    """The lower quartile: other programs delay the slower steps."""
    return sorted(seconds)[len(seconds) // 4]


def commands(hosts: Sequence[Host], folder: Path, report: Report) -> None:
    """generate, serve, speed and mmlu are led by rank 0, and each host reads the cut by itself."""
    cut = folder / "cut"
    _gyrfalcon("cut", "nestling", str(cut), "-w", "2")
    greedy = ("--max-new-tokens", "32", "--ignore-eos", "--dtype", "fp32")
    alone = _gyrfalcon("generate", "nestling", PROMPT, *greedy)
    for num_hosts, ranks in LAYOUTS:
        model = str(cut) if num_hosts * ranks == 2 else "nestling"
        words = ("-m", "gyrfalcon", "generate", model, PROMPT, *greedy)
        with job(hosts[:num_hosts], ranks, words) as one:
            codes = one.wait()
            outputs = [one.out(host) for host in range(num_hosts)]
        good = codes == [0] * num_hosts and outputs == [alone] + [""] * (num_hosts - 1)
        report.claim(f"{num_hosts} x {ranks}: generate writes one process's text", good, codes)
    speed = ("speed", "nestling", "--in", "16", "--out", "8", "--repeats", "1")
    exam = ("mmlu", "nestling", "-d", "nestling", "--limit", "2", "--shots", "0")
    for measured in (speed, exam):
        with job(hosts[:2], 1, ("-m", "gyrfalcon", *measured)) as one:
            codes, table, errors = one.wait(), one.out(), one.error_lines()
        good = codes == [0, 0] and len(table) > 100
        report.claim(f"2 x 1: {measured[0]} shows its table", good, [codes, *errors])
    _serve(hosts[:2], report)


def _serve(hosts: Sequence[Host], report: Report) -> None:
    words = ("-m", "gyrfalcon", "serve", "nestling", "--host", "127.0.0.1", "--port", "8123")
    body = json.dumps({"model": "nestling", "prompt": PROMPT, "max_tokens": 4, "ignore_eos": True})
    url = "http://127.0.0.1:8123/v1/completions"
    with job(hosts, 1, words) as one:
        one.until("serving nestling")
        asked = subprocess.run(
            hosts[0].command([sys.executable, "-c", ASK, url, body]), capture_output=True, text=True
        )
        report.claim("2 x 1: serve answers", asked.stdout == "4\n", asked.stderr[-200:])
        one.ranks()[0].terminate()
        codes = one.wait()
        report.claim(
            "2 x 1: SIGTERM to rank 0 ends serve with 0 on all hosts", codes == [0, 0], codes
        )


def faults(hosts: Sequence[Host], folder: Path, report: Report) -> None:
    """A kill, a stop and a link that is down end all ranks in time, with a line that says which and where."""
    name = socket.gethostname()
    killed = f"rank 1 on {name}, which ended while"
    silent = f"rank 1 on {name}, which went silent while"
    _fault(hosts, report, "kill of rank 1", KILLED_SECONDS, killed, lambda one: _send(one, 1, 9))
    _fault(
        hosts,
        report,
        "kill of rank 0",
        KILLED_SECONDS,
        "rank 0 to live",
        lambda one: _send(one, 0, 9),
        1,
    )
    stop = signal.SIGSTOP
    _fault(hosts, report, "SIGSTOP", SILENT_SECONDS, silent, lambda one: _send(one, 1, stop))
    _fault(
        hosts, report, "link down", SILENT_SECONDS, silent, lambda one: hosts[1].set_link("down")
    )
    hosts[1].set_link("up")


def _send(one: Job, rank: int, number: int) -> None:
    one.ranks()[rank].send_signal(number)


def _fault(
    hosts: Sequence[Host],
    report: Report,
    name: str,
    most_seconds: float,
    line: str,
    inject: Callable[[Job], object],
    told_by: int = 0,
) -> None:
    with job(hosts[:2], 1, ("-m", "gyrfalcon", *ENDLESS)) as one:
        one.until("ready in")
        time.sleep(1)
        ranks = list(one.ranks().values())
        inject(one)
        seconds = one.seconds_until_ended(ranks)
        lines = one.error_lines(told_by)
        report.claim(
            f"{name}: all ended within {most_seconds:g} s",
            seconds <= most_seconds,
            f"{seconds:.2f} s",
        )
        report.claim(
            f"{name}: the last line says it", bool(lines) and line in lines[-1], lines[-1:]
        )


def restart(hosts: Sequence[Host], folder: Path, report: Report) -> None:
    """torchrun starts all ranks anew when one was killed, and the command ends as if nothing had been."""
    words = ("generate", "nestling", PROMPT, "--max-new-tokens", "200", "--ignore-eos")
    alone = _gyrfalcon(*words, "--dtype", "fp32")
    for victim in (1, 0):
        again = ("-m", "gyrfalcon", *words, "--dtype", "fp32")
        with job(hosts[:2], 1, again, restarts=2) as one:
            one.until("ready in", host=_host_of_rank_0(one))
            one.ranks()[victim].kill()
            codes = one.wait()
            texts = [one.out(host) for host in range(2)]
            errors = [one.error_lines(host) for host in range(2)]
        good = codes == [0, 0] and any(text.endswith(alone) for text in texts)
        got = codes if good else f"{codes} {errors}"
        report.claim(f"rank {victim} killed: all start anew, and end with 0", good, got)


def _host_of_rank_0(one: Job) -> int:
    """torchrun's c10d numbers hosts in the order of their arrival."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for index in range(len(one.hosts)):
            if "ready in" in one.err(index):
                return index
        time.sleep(0.05)
    raise RuntimeError(
        f"wanted ranks that are ready, got {one.err(0)[-1500:]} {one.err(1)[-1500:]}"
    )


def _alone(model: Path, folder: Path) -> tuple[torch.Tensor, list[int]]:
    out = folder / "alone.json"
    command = [sys.executable, "-m", "netns_cluster.probe", str(model), "1", str(out)]
    subprocess.run(command, check=True)
    return torch.load(f"{out}.pt"), json.loads(out.read_text())["tokens"]


def _probed(hosts: Sequence[Host], ranks: int, model: Path, folder: Path) -> dict[str, Any]:
    out = folder / "probed.json"
    size = str(len(hosts) * ranks)
    with job(hosts, ranks, ("-m", "netns_cluster.probe", str(model), size, str(out))) as one:
        codes = one.wait()
        if any(codes):
            raise RuntimeError(
                f"wanted exit code 0 on every host, got {codes}: {one.err()[-2000:]}"
            )
    found = json.loads(out.read_text())
    found["logits"] = torch.load(f"{out}.pt")
    return dict(found)


def _gyrfalcon(*words: str) -> str:
    command = [sys.executable, "-m", "gyrfalcon", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


CHECKS: dict[str, Check] = {
    "equality": equality,
    "wire": wire,
    "commands": commands,
    "faults": faults,
    "restart": restart,
}
