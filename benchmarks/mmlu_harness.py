"""`mmlu --protocol lm-eval` beside lm-evaluation-harness driving transformers: the same model, the
same questions, fp32.

    pip install -c constraints.txt -e ".[bench]"
    python benchmarks/mmlu_harness.py MODEL -d MMLU [--subjects a,b,c,d,e] [--questions 60]

The harness reads its own prompts (its task files, only their data set replaced by the CSV files).
Neither time holds the loading of the model. Gates: the same predictions, at least 5 × as fast.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import lm_eval
import torch
import yaml
from lm_eval.models.huggingface import HFLM

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.measure.mmlu.exam import LETTERS, Question, Subject, read_exam
from gyrfalcon.measure.mmlu.prompts import LM_EVAL, Exam
from gyrfalcon.measure.mmlu.run import answers

LEAST_RATIO = 5.0
SUBJECTS = "astronomy,college_medicine,econometrics,philosophy,virology"
TASKS = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default"
Predictions = dict[tuple[str, int], str]


def main() -> int:
    """Measures and prints; 1 when a gate does not hold."""
    options = parse_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    names = options.subjects.split(",")
    exam = Exam(read_exam(options.data, "test", names, options.questions), "test", LM_EVAL, 5)
    harness_seconds, theirs = run_harness(exam, options)
    our_seconds, ours = run_ours(exam, options)
    return report(harness_seconds, theirs, our_seconds, ours)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times `mmlu` beside lm-evaluation-harness.")
    parser.add_argument("model", help="a Hugging Face folder")
    parser.add_argument("-d", "--data", type=Path, required=True, help="MMLU's folder")
    parser.add_argument("--subjects", default=SUBJECTS)
    parser.add_argument("--questions", type=int, default=60, help="of each subject")
    parser.add_argument("--batch-size", type=int, default=8, help="of the harness")
    parser.add_argument("--threads", type=int, default=None)
    return parser.parse_args()


def run_ours(exam: Exam, options: argparse.Namespace) -> tuple[float, Predictions]:
    """Seconds and predictions of this package."""
    config = EngineConfig(model=options.model, dtype="fp32", threads=options.threads)
    with Engine(config) as engine:
        start = time.perf_counter()
        found = {(one.subject, one.id): one.pred or "" for one in answers(engine, exam)}
        return time.perf_counter() - start, found


def run_harness(exam: Exam, options: argparse.Namespace) -> tuple[float, Predictions]:
    """Seconds and predictions of the harness."""
    model = HFLM(
        pretrained=options.model,
        dtype="float32",
        device="cpu",
        batch_size=options.batch_size,
        attn_implementation="sdpa",
    )
    with tempfile.TemporaryDirectory() as name:
        tasks = [task(subject, Path(name)) for subject in exam.subjects]
        start = time.perf_counter()
        results = lm_eval.simple_evaluate(
            model=model, tasks=tasks, num_fewshot=exam.num_examples, bootstrap_iters=0
        )
        seconds = time.perf_counter() - start
    found = {}
    for subject in exam.subjects:
        for sample in results["samples"][f"mmlu_{subject.name}"]:
            likelihoods = [response[0] for response in sample["filtered_resps"]]
            best = max(range(len(LETTERS)), key=likelihoods.__getitem__)
            found[subject.name, sample["doc_id"]] = LETTERS[best]
    return seconds, found


def task(subject: Subject, folder: Path) -> dict[str, object]:
    """The harness's own task, reading its questions from files in `folder`."""
    template = yaml.safe_load((TASKS / "_default_template_yaml").read_text())
    own = yaml.safe_load((TASKS / f"mmlu_{subject.name}.yaml").read_text())
    files = {
        "test": write_questions(folder / f"{subject.name}_test.jsonl", subject.questions),
        "dev": write_questions(folder / f"{subject.name}_dev.jsonl", subject.examples),
    }
    own.pop("include")
    own.pop("dataset_name")
    own.pop("tag", None)
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}}
    return {**template, **own, **data}


def write_questions(path: Path, questions: Sequence[Question]) -> str:
    """One question a line, as the harness's templates name its parts."""
    with path.open("w", encoding="utf-8") as file:
        for question in questions:
            row = {
                "question": question.text,
                "choices": list(question.choices),
                "answer": LETTERS.index(question.answer),
            }
            file.write(json.dumps(row) + "\n")
    return str(path)


def report(
    harness_seconds: float, theirs: Predictions, our_seconds: float, ours: Predictions
) -> int:
    """Both rates, the differing predictions, the gates."""
    different = [key for key in theirs if theirs[key] != ours[key]]
    ratio = harness_seconds / our_seconds
    print(f"{len(ours)} questions")
    print(f"lm-evaluation-harness {len(theirs) / harness_seconds:8.2f} questions/s")
    print(f"gyrfalcon             {len(ours) / our_seconds:8.2f} questions/s, {ratio:.2f} ×")
    print(f"different predictions: {different or 'none'}")
    holds = ratio >= LEAST_RATIO and not different and len(theirs) == len(ours)
    print(f"gates (same predictions, ≥ {LEAST_RATIO} ×): {'hold' if holds else 'DO NOT HOLD'}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
