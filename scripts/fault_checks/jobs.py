"""The commands that write: what each is given, and what of its result has to be equal after any fault."""

import csv
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from checkpoints import make_checkpoint
from exams import write_rows
from tokenizers_ import make_tokenizer

from fault_checks.writes import Job, folder_bytes
from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.cut.cut import cut
from gyrfalcon.cut.verify import verify
from gyrfalcon.device import cpu, rates
from gyrfalcon.measure.mmlu.result import ExamResult
from gyrfalcon.measure.speed.files import Files

SMALL: dict[str, Any] = dict(
    hidden_size=64, num_attention_heads=8, num_kv_heads=2, num_hidden_layers=1, vocab_size=521
)
PROTOCOL = ("--protocol", "generate", "--shots", "1")
ENGINE = ("--threads", "1", "--dtype", "fp32", "--max-len", "1024")
ROWS = ("--part-rows", "2", *ENGINE)
SHARDS = ("--max-shard-size", "90KB")  # several stages
OUT = "OUT"  # stands for the folder of a job
NUM_ROWS = 5
WHOLE_SHARDS = ("--max-shard-size", "140KB")
# Of a result: what no two runs share.
JOB_FILES = ("run/log", "run/claims", "run/job.json", "run/result.json")
TIMES = ("questions_per_second", "seconds", "date", "num_resumed", "num_computed")
BRIEF: tuple[tuple[ModuleType, str, object], ...] = (
    (rates, "LEAST_ROUNDS", 1),
    (rates, "ROUNDS_SECONDS", 0.01),
    (rates, "PRODUCT_SIZES", (512,)),
    (cpu, "READ_BYTES", 4 << 20),
)


def make_jobs(folder: Path) -> dict[str, Job]:
    """All jobs, with what they read in `folder`. Measures of what the machine can do become brief in this
    process: they take seconds, and nobody keeps their figures here.
    """
    for module, name, brief in BRIEF:
        setattr(module, name, brief)
    source, sharded, exam = folder / "hf", folder / "cut", folder / "exam"
    make_checkpoint(source, "40b", **SMALL)
    make_tokenizer(source)
    cut(source, sharded, 2)
    exam.mkdir()
    write_rows(exam)
    words = {
        "cut": ("cut", str(source), "-w", "2", *SHARDS),
        "recut": ("recut", str(sharded), "-w", "3", *SHARDS),
        "merge": ("merge", str(sharded), *WHOLE_SHARDS),
    }
    jobs = [_folder_job(name, *some) for name, some in words.items()]
    prompts = folder / "prompts.jsonl"
    rows = ({"id": n, "prompt": [20 + n, 30, 40 + n]} for n in range(NUM_ROWS))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    jobs += [_mmlu(source, exam), _speed(source)]
    jobs.append(_rows_job("score", str(prompts), OUT, "-m", str(source)))
    options = ("--prompt-file", str(prompts), "-o", OUT, "--max-new-tokens", "3")
    jobs.append(_rows_job("generate", str(source), *options))
    return {job.name: job for job in jobs}


def _folder_job(name: str, command: str, source: str, *options: str) -> Job:
    def whole(place: Path) -> None:
        target = place / "out" / "new"
        if name == "merge" and target.exists():
            open_checkpoint(target)
        elif target.exists() and (faults := verify(target).faults):
            raise ValueError(faults[0])

    return Job(
        name,
        lambda place: (command, source, str(place / "out" / "new"), *options),
        lambda place: folder_bytes(place / "out"),
        whole,
    )


def _mmlu(model: Path, exam: Path) -> Job:
    def words(place: Path) -> tuple[str, ...]:
        target = str(place / "out" / "run")
        return ("mmlu", str(model), "-d", str(exam), "-o", target, *PROTOCOL, *ENGINE)

    def outcome(place: Path) -> dict[str, object]:
        folder = place / "out" / "run"
        found = json.loads((folder / "mmlu.json").read_text())["result"]
        result = {name: value for name, value in found.items() if name not in TIMES}
        rows = sorted(csv.reader((folder / "cache0.csv").read_text().splitlines()))
        names = ("result_0_subject_acc.json", "result_0_classes_acc.json")
        return {**result, "rows": rows, **{name: (folder / name).read_bytes() for name in names}}

    def whole(place: Path) -> None:
        folder = place / "out" / "run"
        if (folder / "mmlu.json").exists():
            ExamResult.load(folder / "mmlu.json")
        for path in folder.glob("result_0_*.json"):
            json.loads(path.read_text())

    return Job("mmlu", words, outcome, whole)


def _speed(model: Path) -> Job:
    def words(place: Path) -> tuple[str, ...]:
        lengths = ("--in", "4,8", "--out", "2,4", "--repeats", "1")
        return ("speed", str(model), "-f", str(place / "out" / "speed.csv"), *lengths, *ENGINE)

    def outcome(place: Path) -> dict[str, object]:
        rows = list(csv.reader((place / "out" / "speed.csv").read_text().splitlines()))
        found = json.loads((place / "out" / "speed.json").read_text())["result"]
        names = sorted(path.name for path in (place / "out").iterdir())
        cases = [[case["batch"], case["input_len"], case["output_len"]] for case in found["rows"]]
        return {"csv": [row[:3] for row in rows], "cases": cases, "files": names}

    def whole(place: Path) -> None:
        Files(None, place / "out" / "speed.json").earlier()

    return Job("speed", words, outcome, whole)


def _rows_job(name: str, *words: str) -> Job:
    """`score` or `generate` of a file of prompts, which writes parts."""

    def outcome(place: Path) -> dict[str, object]:
        """Parts, their sums and the result, but for a seed that is drawn for each job."""
        files = folder_bytes(place / "out")
        kept = {path: found for path, found in files.items() if path not in JOB_FILES}
        result = json.loads(files["run/result.json"])
        return {**kept, "result": {field: result[field] for field in result if field != "seed"}}

    def whole(place: Path) -> None:
        for part in (place / "out" / "run").glob("part-*.jsonl"):
            for line in part.read_text().splitlines():
                json.loads(line)

    def words_at(place: Path) -> tuple[str, ...]:
        out = str(place / "out" / "run")
        return (name, *(out if word == OUT else word for word in words), *ROWS)

    return Job(name, words_at, outcome, whole)
