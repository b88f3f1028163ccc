"""Questions per second of `mmlu` with shared prefixes and batches, and without either, in one run.

    python benchmarks/mmlu.py MODEL -d MMLU [--subjects a,b,c,d,e] [--questions 25] [--rounds 3]

Both ways alternate, subject by subject; odd rounds begin with the other one. A round asks the
next questions, so that nothing is in the cache already. The predictions must be the same.
Gate: at least 4 × the questions per second, in the median of the rounds. The ratio of processor times
stands beside it: on a machine that others use, it is the steadier one.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.measure.mmlu.exam import Subject, read_exam
from gyrfalcon.measure.mmlu.prompts import PROTOCOLS, Exam
from gyrfalcon.measure.mmlu.run import Answer, answers

LEAST_RATIO = 4.0
SUBJECTS = "astronomy,college_medicine,econometrics,philosophy,virology"
Way = Callable[[Exam], list[Answer]]


@dataclass(frozen=True)
class Round:
    """The same questions both ways."""

    num_questions: int
    fast_seconds: float
    plain_seconds: float
    fast_processor_seconds: float
    plain_processor_seconds: float
    num_different: int

    @property
    def ratio(self) -> float:
        return self.plain_seconds / self.fast_seconds

    @property
    def processor_ratio(self) -> float:
        return self.plain_processor_seconds / self.fast_processor_seconds


def main() -> int:
    """Measures and prints; 1 when the gate does not hold or a prediction differs."""
    options = parse_options()
    exam = read_exam(options.data, "test", options.subjects.split(","))
    config = EngineConfig(model=options.model, dtype="fp32", threads=options.threads)
    with Engine(config) as fast, Engine(replace(config, reuse_prefixes=False)) as plain:
        ways: tuple[Way, Way] = (
            lambda part: list(answers(fast, part)),
            lambda part: one_by_one(plain, part),
        )
        warm_up = Exam(take(exam, 0, 1), "test", PROTOCOLS[options.protocol], 0)
        for way in ways:
            way(warm_up)
        rounds = [measure(number, exam, ways, options) for number in range(options.rounds)]
    return report(rounds, options)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Times `mmlu` with and without what makes it fast."
    )
    parser.add_argument("model", help="a model folder")
    parser.add_argument("-d", "--data", type=Path, required=True, help="MMLU's folder")
    parser.add_argument("--subjects", default=SUBJECTS)
    parser.add_argument("--protocol", default="hendrycks", choices=list(PROTOCOLS))
    parser.add_argument("--questions", type=int, default=25, help="of each subject in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument(
        "--json", type=Path, default=None, help="also write the result to this file"
    )
    return parser.parse_args()


def take(exam: Sequence[Subject], start: int, count: int) -> list[Subject]:
    """The next questions of each subject."""
    return [
        replace(subject, questions=subject.questions[start : start + count]) for subject in exam
    ]


def one_by_one(engine: Engine, exam: Exam) -> list[Answer]:
    """Each question alone, all of its prompt computed."""
    return [
        answer
        for subject in exam.subjects
        for question in subject.questions
        for answer in answers(
            engine, replace(exam, subjects=[replace(subject, questions=(question,))])
        )
    ]


def measure(
    number: int, exam: Sequence[Subject], ways: tuple[Way, Way], options: argparse.Namespace
) -> Round:
    """One round: every subject both ways, one after the other."""
    seconds, processor_seconds = [0.0, 0.0], [0.0, 0.0]
    found: tuple[list[Answer], list[Answer]] = [], []
    protocol = PROTOCOLS[options.protocol]
    for subject in take(exam, number * options.questions, options.questions):
        part = Exam([subject], "test", protocol, 5)
        for which in (1, 0) if number % 2 else (0, 1):
            start, processor_start = time.perf_counter(), time.process_time()
            found[which].extend(ways[which](part))
            seconds[which] += time.perf_counter() - start
            processor_seconds[which] += time.process_time() - processor_start
    preds = [{(a.subject, a.id): a.pred for a in answered} for answered in found]
    different = sum(preds[0][key] != preds[1][key] for key in preds[0])
    return Round(
        num_questions=len(preds[0]),
        fast_seconds=seconds[0],
        plain_seconds=seconds[1],
        fast_processor_seconds=processor_seconds[0],
        plain_processor_seconds=processor_seconds[1],
        num_different=different,
    )


def report(rounds: Sequence[Round], options: argparse.Namespace) -> int:
    """A table for people, then one line of JSON."""
    print(f"{options.model}, {options.protocol}, {options.subjects}")
    columns = ("questions", "fast /s", "plain /s", "ratio", "processor ratio", "different")
    print("".join(f"{column:>17}" for column in columns))
    for one in rounds:
        fast, plain = one.num_questions / one.fast_seconds, one.num_questions / one.plain_seconds
        print(
            f"{one.num_questions:17}{fast:17.2f}{plain:17.2f}{one.ratio:17.2f}"
            f"{one.processor_ratio:17.2f}{one.num_different:17}"
        )
    ratio = statistics.median(one.ratio for one in rounds)
    different = sum(one.num_different for one in rounds)
    holds = ratio >= LEAST_RATIO and different == 0
    print(
        f"median ratio {ratio:.2f}; gate (≥ {LEAST_RATIO}, same predictions): {'holds' if holds else 'FAILS'}"
    )
    result = {
        "protocol": options.protocol,
        "ratio": ratio,
        "processor_ratio": statistics.median(one.processor_ratio for one in rounds),
        "different": different,
        "rounds": [vars(one) for one in rounds],
        "holds": holds,
    }
    print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
