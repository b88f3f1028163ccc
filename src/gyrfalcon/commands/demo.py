"""`gyrfalcon demo`: the whole chain on nestling with 2 ranks, each step a command that anybody could type."""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from gyrfalcon.commands.result import STDOUT, write_json
from gyrfalcon.errors import CheckFailed

PASS_SHARE = 0.6  # of the exam's questions; guessing gives 0.25
PROMPT = "The old captain looked at the sea, and"
RESULTS = ("generate.json", "speed.json", "test_result/mmlu.json", "precision.json")
IN_FULL = """\
in full    gyrfalcon speed {folder}/nestling-2 -f {folder}/full.csv   (36 cases)
           gyrfalcon mmlu {folder}/nestling-2 -d nestling   (2176 questions)"""


def run(args: argparse.Namespace) -> int:
    """Runs all steps, whatever became of the one before; CheckFailed when anything did not hold."""
    start = time.monotonic()
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    for name in RESULTS:
        (folder / name).unlink(missing_ok=True)  # of an earlier demo
    out = sys.stderr if args.json == STDOUT else sys.stdout
    failed = [words[0] for words in _steps(folder) if not _succeeds(words, out)]
    summary = {
        "seconds": time.monotonic() - start,
        "failed": failed,
        **{Path(name).stem: _result(folder / name) for name in RESULTS},
        "report": str(folder / "report" / "report.html"),
    }
    print("\n".join(["", *_lines(summary), IN_FULL.format(folder=folder)]), file=out)
    if args.json is not None:
        write_json(summary, args.json)
    return _verdict(summary)


def _steps(folder: Path) -> Iterator[list[str]]:
    """The commands in their order; a step's files are those that the steps before it left."""
    cut = f"{folder}/nestling-2"
    lengths = "--in 32,256 --out 32,128".split()
    sampling = "--max-new-tokens 64 --temperature 0.7 --seed 1".split()
    yield ["cut", "nestling", cut, "-w", "2", "--overwrite"]
    yield ["verify", cut]
    yield ["generate", cut, "--prompt", PROMPT, *sampling, "--json", f"{folder}/generate.json"]
    yield ["speed", cut, "-f", f"{folder}/speed.csv", *lengths, "--overwrite"]
    yield ["mmlu", cut, "-d", "nestling", "--limit", "40", "-o", f"{folder}/test_result"]
    yield ["precision", cut, "--json", f"{folder}/precision.json"]
    files = [str(folder / name) for name in RESULTS[1:] if (folder / name).exists()]
    plots = [] if find_spec("matplotlib") else ["--no-plots"]
    yield ["report", *files, "-o", f"{folder}/report", *plots]


def _succeeds(words: list[str], out: Any) -> bool:
    print(f"\n$ gyrfalcon {shlex.join(words)}", file=out, flush=True)
    command = [sys.executable, "-m", "gyrfalcon", *words]
    return subprocess.run(command, stdout=out.fileno(), check=False).returncode == 0


def _result(path: Path) -> Any:
    """What a step left; None when it left nothing."""
    if not path.exists():
        return None
    document = json.loads(path.read_text("utf-8"))
    return document.get("result", document)


def _lines(summary: dict[str, Any]) -> Iterator[str]:
    """The summary, a line for each thing there is something to tell of."""
    yield f"{summary['seconds']:.0f} s, 2 ranks; failed: {', '.join(summary['failed']) or 'nothing'}"
    if (written := summary["generate"]) is not None:
        yield f"text       {PROMPT}{written['text']}".replace("\n", " ")
    if (speed := summary["speed"]) is not None and speed["averages"]["cases"]:
        ms = speed["averages"]["time_per_token_ms"]
        limit = median(row.get("decode_percent_of_limit") or 0 for row in speed["rows"])
        yield f"speed      {ms:.2f} ms/token, {limit:.1f} % of the memory bandwidth"
    if (exam := summary["mmlu"]) is not None:
        low, high = (100 * end for end in exam["interval"])
        yield (
            f"exam       {100 * exam['accuracy']:.1f} % of {exam['total']} questions ({low:.1f}-{high:.1f}); "
            f"wanted {100 * PASS_SHARE:.0f} %, guessing gives 25 %"
        )
    if (precision := summary["precision"]) is not None:
        cosines = [
            f"{phase} {figure['value']:.6f}"
            for phase, figures in precision["figures"].items()
            for figure in figures
            if figure["name"] == "cosine"
        ]
        holds = "the gate holds" if precision["passed"] else "THE GATE DOES NOT HOLD"
        yield f"precision  cosine {', '.join(cosines)}; {holds}"
    yield f"report     {summary['report']}"


def _verdict(summary: dict[str, Any]) -> int:
    exam = summary["mmlu"]
    if summary["failed"]:
        got = f"{summary['failed'][0]} failing"
        raise CheckFailed("every step to succeed", got, "see its output above")
    if exam["accuracy"] < PASS_SHARE:
        got = f"{100 * exam['accuracy']:.1f} %"
        do = "something computes wrongly: see the precision above, then gyrfalcon doctor"
        raise CheckFailed(f"an exam of {100 * PASS_SHARE:.0f} % or more", got, do)
    return 0
