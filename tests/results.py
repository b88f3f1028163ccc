"""Made-up results of every kind, written by what writes real ones."""

from dataclasses import asdict, replace
from functools import cache

import torch

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.measure import result
from gyrfalcon.measure.mmlu.exam import LETTERS, Question, Subject
from gyrfalcon.measure.mmlu.prompts import PROTOCOLS, Exam
from gyrfalcon.measure.mmlu.run import Answer
from gyrfalcon.measure.mmlu.score import answer_json, score, score_json
from gyrfalcon.measure.perplexity import Perplexity
from gyrfalcon.measure.precision.gate import compare, figures
from gyrfalcon.measure.precision.reference_file import Origin
from gyrfalcon.measure.precision.run import Outcome
from gyrfalcon.measure.roofline import MachineLimits
from gyrfalcon.measure.speed.cases import Case, Generation, Row, figures_of
from gyrfalcon.measure.speed.files import Sweep

SUBJECTS = {"astronomy": "STEM", "virology": "other", "sociology": "social sciences"}


@cache
def _head() -> dict[str, object]:
    with Engine(EngineConfig(model="nestling", dtype="fp32", max_len=64)) as engine:
        return result.envelope("speed", engine, ["speed"], {})


def signed(kind: str, found: dict[str, object], name: str = "falcon-x") -> dict[str, object]:
    """The document of a result, as if a model of that name had been measured."""
    model = _head()["model"]
    assert isinstance(model, dict)
    return {**_head(), "kind": kind, "model": {**model, "name": name}, "result": found}


def sweep(
    slower: float = 1.0, batch: int = 1, lengths: tuple[int, ...] = (32, 64), fits: bool = False
) -> Sweep:
    """Times that grow with the input, gaps that grow with the output; the longest pair did not fit,
    unless it `fits`.
    """
    rows = {}
    for input_len in lengths:
        for output_len in lengths:
            case = Case(batch, input_len, output_len)
            step = slower * (0.01 + input_len / 20000)
            steps = [n + n * n / output_len for n in range(output_len)]
            times = tuple(slower * input_len / 1000 + n * step for n in steps)
            first, whole = (
                Generation(times[0], (times[:1],) * batch),
                Generation(times[-1], (times,) * batch),
            )
            found = figures_of(case, [first], [whole], 1)
            found = replace(
                found,
                peak_memory_bytes=[1_500_000_000],
                decode_percent_of_limit=50 / slower,
                prefill_percent_of_limit=20 / slower,
            )
            rows[case] = Row(case, 2048, found)
    if not fits:
        last = Case(batch, *lengths[-1:] * 2)
        rows[last] = Row(last, 2048, None, "the KV cache holds 16 tokens, 128 are needed")
    return Sweep(1, MachineLimits(50e9, 2e12), rows)


def answered(subject: str, number: int, letter: int) -> Answer:
    """That letter is most likely; right is A."""
    logprobs = tuple(-1.0 if n == letter else -2.0 for n in range(4))
    return Answer(subject, number, "A", LETTERS[letter], 1, 20, logprobs=logprobs)


def exam_result(
    shift: int = 0,
    protocol: str = "hendrycks",
    number: int = 10,
    exam_name: str = "a quiz",
) -> dict[str, object]:
    """`number` questions a subject; which of them are answered right depends on `shift`."""
    example = Question(0, "What?", ("a", "b", "c", "d"), "A")
    subjects = [
        Subject(name, category, (example,), tuple(replace(example, id=n) for n in range(number)))
        for name, category in SUBJECTS.items()
    ]
    exam = Exam(subjects, "test", PROTOCOLS[protocol], 1)
    answers = [
        answered(name, n, (n * (k + 1) + shift) % 4)
        for k, name in enumerate(SUBJECTS)
        for n in range(number)
    ]
    return {
        "exam": {"name": exam_name, "num_subjects": 3, "num_questions": 30},
        **exam.settings,
        "num_questions": exam.num_questions,
        **score_json(score(subjects, answers), subjects),
        "predictions": [answer_json(answer) for answer in answers],
    }


def gate_result(error: float = 1e-6) -> dict[str, object]:
    """Logits of nine tokens, the last three decoded, off by `error`."""
    torch.manual_seed(0)
    reference = torch.randn(9, 50)
    ours = reference + error * torch.randn(9, 50)
    parts = {
        "prefill": compare(ours[:6], reference[:6]),
        "decode": compare(ours[6:], reference[6:]),
    }
    phases = {phase: figures(part, "fp32") for phase, part in parts.items()}
    origin = Origin("transformers", "transformers 5, fp32", independent=True)
    return Outcome("fp32", origin, phases, (parts,)).as_json()


def perplexity_result() -> dict[str, object]:
    """What a text of 500 tokens costs."""
    found = Perplexity(nats=1234.5, num_tokens=500, num_bytes=2100)
    return {
        "file": "a_book.txt",
        "window": 64,
        "stride": 32,
        **asdict(found),
        "perplexity": found.perplexity,
        "bits_per_token": found.bits_per_token,
        "bits_per_byte": found.bits_per_byte,
    }
