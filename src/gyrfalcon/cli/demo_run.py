"""What `gyrfalcon demo` does: the whole chain on nestling with 2 ranks, each step a command that anybody
could type.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from gyrfalcon.console.format import counted, goes_to_stdout, write_json
from gyrfalcon.errors import CheckFailed, UsageError
from gyrfalcon.files.output import check_folder
from gyrfalcon.parallel.torchrun import outside_torchrun

PASS_SHARE = 0.6  # of the exam's questions; guessing gives 0.25
PROMPT = "The old captain looked at the sea, and"
RESULTS = ("generate.json", "speed.json", "test_result/mmlu.json", "precision.json")
MADE = ("nestling-2", "speed.csv", "test_result", "report", *RESULTS)  # all that a demo leaves
MARK = ".gyrfalcon-demo"  # in a folder that an earlier demo made
NEEDED = ("cut", "verify")  # without these the other steps have nothing to run on


def run(args: argparse.Namespace) -> int:
    """Runs the steps one after the other; CheckFailed when anything did not hold."""
    start = time.monotonic()
    folder = Path(args.output)
    _make_ready(folder)
    out = sys.stderr if goes_to_stdout(args.json) else sys.stdout
    failed = _run_steps(folder, out)
    report = folder / "report" / "report.html"
    summary = {
        "seconds": time.monotonic() - start,
        "failed": failed,
        **{Path(name).stem: _result(folder / name) for name in RESULTS},
        "report": str(report) if report.exists() else None,
    }
    print("\n".join(["", *_lines(summary, folder)]), file=out)
    if args.json is not None:
        write_json(summary, args.json)
    return _verdict(summary)


def _run_steps(folder: Path, out: Any) -> list[str]:
    """The steps that failed; the others are run all the same, unless there is no cut to run on."""
    failed: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        for words in _steps(folder):
            if not _succeeds(words, out):
                failed.append(words[0])
                if words[0] in NEEDED:
                    break
    finally:
        signal.signal(signal.SIGTERM, before)
    return failed


def _make_ready(folder: Path) -> None:
    """An empty folder: a new one, or an earlier demo's; never one that holds anything else."""
    if Path("nestling").exists():
        do = "run the demo in another folder"
        raise UsageError("no folder nestling here, which would hide the model", "one", do)
    check_folder(folder, "-o")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).exists():
        do = "name another with -o"
        raise UsageError("an empty folder, or an earlier demo's", f"{folder} with files in it", do)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    for name in MADE:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


def _steps(folder: Path) -> Iterator[list[str]]:
    """The commands in their order; a step's files are those that the steps before it left."""
    cut = f"{folder}/nestling-2"
    lengths = "--in 32,256 --out 32,128".split()
    sampling = "--max-new-tokens 64 --temperature 0.7 --seed 1".split()
    yield ["cut", "nestling", cut, "-w", "2"]
    yield ["verify", cut]
    yield ["generate", cut, "--prompt", PROMPT, *sampling, "--json", f"{folder}/generate.json"]
    yield ["speed", cut, "-f", f"{folder}/speed.csv", *lengths]
    yield ["mmlu", cut, "-d", "nestling", "-o", f"{folder}/test_result"]
    yield ["precision", cut, "--json", f"{folder}/precision.json"]
    files = [str(folder / name) for name in RESULTS[1:] if (folder / name).exists()]
    plots = [] if find_spec("matplotlib") else ["--no-plots"]
    if files:
        yield ["report", *files, "-o", f"{folder}/report", *plots]


def _succeeds(words: list[str], out: Any) -> bool:
    """Runs a step as a process of its own, which does not outlive this one."""
    print(f"\n$ gyrfalcon {shlex.join(words)}", file=out, flush=True)
    early: list[int] = []  # a signal that comes before the step is known
    on_end = signal.signal(signal.SIGTERM, lambda number, _: early.append(number))
    command, alone = [sys.executable, "-m", "gyrfalcon", *words], outside_torchrun(os.environ)
    step = subprocess.Popen(command, stdout=out.fileno(), env=alone)
    try:
        signal.signal(signal.SIGTERM, on_end)
        if early:
            signal.raise_signal(signal.SIGTERM)
        return step.wait() == 0
    except BaseException:
        step.terminate()
        step.wait()
        raise


def _result(path: Path) -> Any:
    """What a step left; None when it left nothing."""
    if not path.exists():
        return None
    document = json.loads(path.read_text("utf-8"))
    return document.get("result", document)


def _lines(summary: dict[str, Any], folder: Path) -> Iterator[str]:
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
            f"exam       {100 * exam['accuracy']:.1f} % of {counted(exam['total'], 'question')} "
            f"({low:.1f}-{high:.1f}); "
            f"wanted {100 * PASS_SHARE:.0f} %, guessing gives 25 %"
        )
    if (precision := summary["precision"]) is not None:
        cosines = [
            f"{phase} {'NaN' if figure['value'] is None else format(figure['value'], '.6f')}"
            for phase, figures in precision["figures"].items()
            for figure in figures
            if figure["name"] == "cosine"
        ]
        holds = "the gate holds" if precision["passed"] else "THE GATE DOES NOT HOLD"
        yield f"precision  cosine {', '.join(cosines)}; {holds}"
    if summary["report"] is not None:
        yield f"report     {summary['report']}"
    if not set(summary["failed"]) & set(NEEDED):
        cut, table = (shlex.quote(str(folder / name)) for name in ("nestling-2", "full.csv"))
        yield f"in full    gyrfalcon speed {cut} -f {table}   (36 cases)"


def _verdict(summary: dict[str, Any]) -> int:
    exam = summary["mmlu"]
    if summary["failed"]:
        got = f"{summary['failed'][0]} failing"
        raise CheckFailed("every step to succeed", got, "see its output above")
    if exam["accuracy"] is None or exam["accuracy"] < PASS_SHARE:
        got = "no answers" if exam["accuracy"] is None else f"{100 * exam['accuracy']:.1f} %"
        do = "something computes wrongly: see the precision above, then gyrfalcon doctor"
        raise CheckFailed(f"an exam of {100 * PASS_SHARE:.0f} % or more", got, do)
    return 0
