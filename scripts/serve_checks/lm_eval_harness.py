"""lm-evaluation-harness by `local-completions`: five shots, scored by echo with log-probabilities.

Its scores are those of the engine in this process; what prompts share is computed once, and saves time. The
questions are the nestling exam's, each after a passage as long as reading comprehension has.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

from gyrfalcon import Engine, SamplingParams
from gyrfalcon.measure.passage import PASSAGE
from gyrfalcon.nestling.exam import LETTERS, questions
from gyrfalcon.nestling.subjects import SUBJECTS
from serve_checks.context import Context, json_of
from serve_checks.environment import Environment, environment
from serve_checks.models import chat_model
from serve_checks.report import Report
from serve_checks.server import Server, serving, starting

NUM_QUESTIONS, PASSAGE_WORDS = 40, 60
MOST_DIFFERENCE, MOST_COMPUTED, LEAST_FASTER = 1e-3, 1.15, 3.0
SETTINGS: Mapping[str, object] = {"dtype": "fp32", "threads": 1}
TASK = {
    "task": "nestling_reading",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "fewshot_split": "dev",
    "fewshot_config": {"sampler": "first_n"},
    "doc_to_text": "{{passage}}\n{{question}}\n{% for one in choices %}{{'ABCD'[loop.index0]}}. {{one}}\n"
    "{% endfor %}Answer:",
    "doc_to_choice": list(LETTERS),
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
Found = Any  # what the client printed


def run(context: Context, report: Report) -> None:
    """Evaluates against two servers, of which one computes every prompt anew, and in this process."""
    client = environment("lm-eval", context.environments, borrows=True)
    report.versions |= client.versions
    model, task = chat_model(context.folder), _write_task(context.folder)
    options = ("--dtype", "fp32", "--threads", "1")
    with serving(context.folder, model, *options) as server:
        found = _evaluated(client, server, model, task)
        metrics = server.metrics()
    command = [sys.executable, "-m", "serve_checks.serve_engine", str(model)]
    command += [json.dumps({**SETTINGS, "reuse_prefixes": False})]
    with starting(
        ["env", f"PYTHONPATH={Path(__file__).parents[1]}", *command], context.folder
    ) as slow:
        anew = _evaluated(client, slow, model, task)
    _compare_scores(report, found, anew, model)
    computed = sum(
        sign * metrics[f"vllm:prefix_cache_{name}_total"]
        for sign, name in ((1, "queries"), (-1, "hits"))
    )
    _claim_reuse(report, computed, found, anew, model)


def _evaluated(client: Environment, server: Server, model: Path, task: Path) -> Found:
    return json_of([*client.client("lm_eval_calls"), server.url, str(model), str(task)], 900)


def _write_task(folder: Path) -> Path:
    """The task, and the files of its questions."""
    random, words = Random(0), PASSAGE.read_text("utf-8").split()
    subject = next(one for one in SUBJECTS if one.name == "capitals")
    files = {}
    for split, num in (("dev", 5), ("test", NUM_QUESTIONS)):
        rows = [_row(one, words, random) for one in questions(subject, split)[:num]]
        file = folder / f"{split}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        files[split] = str(file)
    path = folder / "task.json"
    path.write_text(json.dumps(TASK | {"dataset_kwargs": {"data_files": files}}), "utf-8")
    return path


def _row(one: Any, words: Sequence[str], random: Random) -> dict[str, object]:
    begin = random.randrange(len(words) - PASSAGE_WORDS)
    return {
        "passage": " ".join(words[begin : begin + PASSAGE_WORDS]),
        "question": one.question,
        "choices": list(one.choices),
        "answer": LETTERS.index(one.letter),
    }


def _compare_scores(report: Report, found: Found, anew: Found, model: Path) -> None:
    rows = found["rows"]
    with Engine(str(model), **SETTINGS) as engine:  # type: ignore[arg-type]  # settings of an engine
        wanted = list(_scores(engine, rows))
    most = max(abs(row["logprob"] - one) for row, one in zip(rows, wanted, strict=True))
    report.figure("requests", len(rows))
    report.figure("accuracy", [found["accuracy"], anew["accuracy"]])
    report.figure("score_difference", most)
    report.claim(
        "every score is the engine's", most <= MOST_DIFFERENCE, f"at most {most:.1e} apart"
    )
    apart = max(
        abs(row["logprob"] - other["logprob"])
        for row, other in zip(rows, anew["rows"], strict=True)
    )
    report.claim("and the same without reuse", apart <= MOST_DIFFERENCE, f"{apart:.1e}")


def _scores(engine: Engine, rows: Sequence[Found]) -> Iterator[float]:
    """The log-probability of each continuation after its context."""
    params = SamplingParams(max_new_tokens=0, prompt_logprobs=1)
    prompts = [engine.encode(row["context"] + row["continuation"]) for row in rows]
    for row, output in zip(rows, engine.generate(prompts, params), strict=True):
        begin = len(engine.encode(row["context"]))
        tokens = (output.prompt_logprobs or ())[begin:]
        yield sum(one.logprob or 0.0 for one in tokens if one is not None)


def _claim_reuse(report: Report, computed: float, found: Found, anew: Found, model: Path) -> None:
    seen, total = set[int](), 0
    with Engine(str(model)) as engine:
        for row in found["rows"]:
            ids = engine.encode(row["context"] + row["continuation"])
            total += len(ids)
            seen.update(accumulate(ids, lambda before, token: hash((before, token)), initial=0))
    distinct = len(seen) - 1
    report.figure("prompt_tokens", {"all": total, "distinct": distinct, "computed": int(computed)})
    ratio = computed / distinct
    report.claim(
        f"prompt tokens computed are at most {MOST_COMPUTED} × the distinct ones",
        ratio <= MOST_COMPUTED,
        f"{ratio:.3f} ×",
    )
    seconds = [round(one["seconds"], 1) for one in (found, anew)]
    report.figure("seconds", seconds)
    faster = anew["seconds"] / found["seconds"]
    report.claim(
        f"at least {LEAST_FASTER:g} × faster than without reuse",
        faster >= LEAST_FASTER,
        f"{faster:.2f} ×",
    )
