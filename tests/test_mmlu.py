"""MMLU: prompts as written out by hand, scores as transformers has them, runs that survive a kill."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from transformers import AutoModelForCausalLM

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.cli import main
from gyrfalcon.config import ModelConfig
from gyrfalcon.errors import CheckpointError, UsageError
from gyrfalcon.measure.exam import CATEGORIES, LETTERS, Question, Subject, read_exam
from gyrfalcon.measure.golden import Golden, MMLUFigure, known
from gyrfalcon.measure.mmlu import Answer, answers
from gyrfalcon.measure.mmlu_compare import compare
from gyrfalcon.measure.mmlu_files import unfinished
from gyrfalcon.measure.mmlu_golden import beside
from gyrfalcon.measure.mmlu_prompts import (
    GENERATE,
    HENDRYCKS,
    LM_EVAL,
    PROTOCOLS,
    Exam,
    Protocol,
    fitted,
    letter_ids,
    prompt_text,
)
from gyrfalcon.measure.mmlu_score import score
from gyrfalcon.measure.proportions import mcnemar, wilson
from gyrfalcon.tokenizer import Tokenizer

Data = Callable[[str], Path]

# electrical_engineering's worked examples and its test question 68, with a choice that says None.
LATCHES = """\
In an SR latch built from NOR gates, which condition is not allowed
A. S=0, R=0
B. S=0, R=1
C. S=1, R=0
D. S=1, R=1
Answer: D

In a 2 pole lap winding dc machine , the resistance of one conductor is 2Ω and total number of \
conductors is 100. Find the total resistance
A. 200Ω
B. 100Ω
C. 50Ω
D. 10Ω
Answer: C

The coil of a moving coil meter has 100 turns, is 40 mm long and 30 mm wide. The control torque is \
240*10-6 N-m on full scale. If magnetic flux density is 1Wb/m2 range of meter is
A. 1 mA.
B. 2 mA.
C. 3 mA.
D. 4 mA.
Answer: B

Two long parallel conductors carry 100 A. If the conductors are separated by 20 mm, the force per \
meter of length of each conductor will be
A. 100 N.
B. 0.1 N.
C. 1 N.
D. 0.01 N.
Answer: B

A point pole has a strength of 4π * 10^-4 weber. The force in newtons on a point pole of \
4π * 1.5 * 10^-4 weber placed at a distance of 10 cm from it will be
A. 15 N.
B. 20 N.
C. 7.5 N.
D. 3.75 N.
Answer: A

A latch is ________ sensitive
A. both level and edge
B. edge
C. level
D. None
Answer:"""

# formal_logic's worked example about Mars and its test question 117, which begin with a space.
ROBOTS = """\
{gap}Select the best translation into predicate logic: No people drive on Mars.
A. ~Pd
B. (∀x)(Px ∨ ~Dx)
C. (∀x)(Px ⊃ ~Dx)
D. ~Dp
Answer: C

{gap}Select the best translation into predicate logic: All robots are artifacts.
A. (∀x)(Ax ∨ Rx)
B. (∀x)(Ax • Rx)
C. (∀x)(Rx ⊃ Ax)
D. (∀x)(Rx • Ax)
Answer:"""

HEAD = "The following are multiple choice questions (with answers) about"

# A made-up exam: small, with a None, a comma, quotes and a line break in its cells.
ROWS = {
    "dev/birds_dev.csv": [
        ("Which bird is white?", "raven", "swan", "rook", "crow", "B"),
        ("Which bird runs?", "ostrich", "swift", "kite", "tern", "A"),
    ],
    "dev/sums_of_two_dev.csv": [
        ("1 + 1 =", "1", "2", "3", "4", "B"),
        ("2 + 3 =", "6", "4", "5", "7", "C"),
    ],
    "test/birds_test.csv": [
        ("Which falcon nests in the north?", "gyrfalcon", "None", "kestrel", "hobby", "A"),
        ('Which bird\nsays "who", at night?', "wren", "gull", "duck", "owl", "D"),
        ("Which bird dives?", "hen", "gannet", "dodo", "rhea", "B"),
    ],
    "test/sums_of_two_test.csv": [
        ("2 + 2 =", "5", "3", "4", "None", "C"),
        ("0 + 1 =", "1", "0", "2", "10", "A"),
        ("3 + 1 =", "3", "2", "13", "4", "D"),
        ("1 + 2 =", "3", "1", "2", "12", "A"),
    ],
}


@pytest.fixture(scope="module")
def exam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exam")
    for name, rows in ROWS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
    (folder / "categories.json").write_text('{"sums_of_two": "STEM"}')
    return folder


@pytest.fixture(scope="module")
def model(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with the real tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_checkpoint(
        folder, "40b", hidden_size=64, num_attention_heads=8, num_kv_heads=2, vocab_size=65024
    )
    for file in data("falcon-tokenizer").iterdir():
        shutil.copy(file, folder)
    return folder


def exam_of(
    folder: Path, protocol: Protocol = HENDRYCKS, num_examples: int = 2, split: str = "test"
) -> Exam:
    return Exam(read_exam(folder, split), split, protocol, num_examples)


def by_key(found: list[Answer]) -> list[Answer]:
    return sorted(found, key=lambda answer: (answer.subject, answer.id))


def run(engine: Engine, exam: Exam) -> list[Answer]:
    return by_key(list(answers(engine, exam)))


def subject_of(data: Data, name: str, split: str = "test") -> Subject:
    return read_exam(data("mmlu"), split, [name])[0]


# ---- what is asked ----


@pytest.mark.parametrize(
    ("protocol", "head"),
    [
        (HENDRYCKS, f"{HEAD}  electrical engineering.\n\n"),
        (LM_EVAL, f"{HEAD} electrical engineering.\n\n"),
        (GENERATE, f"{HEAD}  electrical engineering.\n\n"),
    ],
)
def test_a_prompt_with_a_choice_none_is_as_written_by_hand(
    data: Data, protocol: Protocol, head: str
) -> None:
    subject = subject_of(data, "electrical_engineering")
    assert prompt_text(protocol, subject, subject.questions[68], 5) == head + LATCHES


@pytest.mark.parametrize(
    ("protocol", "spaces", "gap"),
    [(HENDRYCKS, "  ", " "), (LM_EVAL, " ", ""), (GENERATE, "  ", " ")],
)
def test_only_lm_eval_strips_questions(
    data: Data, protocol: Protocol, spaces: str, gap: str
) -> None:
    subject = subject_of(data, "formal_logic")
    one = replace(subject, examples=(example_about_mars(subject),))
    text = prompt_text(protocol, one, subject.questions[117], 5)
    assert text == f"{HEAD}{spaces}formal logic.\n\n" + ROBOTS.format(gap=gap)


def example_about_mars(subject: Subject) -> Question:
    return next(example for example in subject.examples if "Mars" in example.text)


BIRDS_0 = f"""{HEAD}  birds.

Which falcon nests in the north?
A. gyrfalcon
B. None
C. kestrel
D. hobby
Answer:"""
BIRDS_1 = f"""{HEAD}  birds.

Which bird is white?
A. raven
B. swan
C. rook
D. crow
Answer: B

Which falcon nests in the north?
A. gyrfalcon
B. None
C. kestrel
D. hobby
Answer:"""
BIRDS_2_LM_EVAL = f"""{HEAD} birds.

Which bird is white?
A. raven
B. swan
C. rook
D. crow
Answer: B

Which bird runs?
A. ostrich
B. swift
C. kite
D. tern
Answer: A

Which falcon nests in the north?
A. gyrfalcon
B. None
C. kestrel
D. hobby
Answer:"""


def encode_characters(text: str) -> list[int]:
    return list(map(ord, text))


@pytest.mark.parametrize(
    ("protocol", "max_len", "text"),
    [
        (HENDRYCKS, len(BIRDS_1) + 1, BIRDS_1),
        (HENDRYCKS, len(BIRDS_1), BIRDS_0),
        (HENDRYCKS, len(BIRDS_0) + 1, BIRDS_0),
        (HENDRYCKS, len(BIRDS_0), None),
        (GENERATE, len(BIRDS_1) + 32, BIRDS_1),
        (GENERATE, len(BIRDS_1) + 31, None),
        (LM_EVAL, len(BIRDS_2_LM_EVAL), BIRDS_2_LM_EVAL),
        (LM_EVAL, len(BIRDS_1), BIRDS_2_LM_EVAL[-len(BIRDS_1) :]),
    ],
)
def test_a_long_prompt_gives_up_examples_or_its_beginning_as_the_protocol_says(
    exam_folder: Path, protocol: Protocol, max_len: int, text: str | None
) -> None:
    exam = exam_of(exam_folder, protocol)
    birds = exam.subjects[0]
    prompt = fitted(exam, birds, birds.questions[0], encode_characters, max_len)
    assert prompt.ids == (None if text is None else tuple(map(ord, text)))


def test_real_shots_are_dropped_where_five_do_not_fit(data: Data) -> None:
    encode = Tokenizer.load(data("falcon-tokenizer")).encode
    history = subject_of(data, "high_school_us_history")
    question = history.questions[0]
    exam = Exam([history], "test", HENDRYCKS, 5)
    prompt = fitted(exam, history, question, encode, 2048)
    assert prompt.num_examples == 4
    assert prompt.ids == tuple(encode(prompt_text(HENDRYCKS, history, question, 4)))
    assert (
        len(prompt.ids) + 1 <= 2048 < 1 + len(encode(prompt_text(HENDRYCKS, history, question, 5)))
    )
    cut = fitted(replace(exam, protocol=LM_EVAL), history, question, encode, 2048)
    assert cut.ids == tuple(encode(prompt_text(LM_EVAL, history, question, 5))[-2048:])


def test_the_guide_leaves_out_what_is_over_2000_tokens_with_one_shot(exam_folder: Path) -> None:
    exam = exam_of(exam_folder, GENERATE)
    birds = exam.subjects[0]
    long = replace(birds.questions[0], text="x" * (2000 - len(BIRDS_1) + 32))
    for question, num_examples in ((long, 1), (replace(long, text=long.text + "y"), 0)):
        prompt = fitted(exam, birds, question, encode_characters, 4096)
        assert (prompt.num_examples, prompt.ids is not None) == (num_examples, bool(num_examples))


def test_cells_are_text_whatever_they_look_like(exam_folder: Path) -> None:
    birds, sums = read_exam(exam_folder, "test")
    assert birds.questions[0].choices == ("gyrfalcon", "None", "kestrel", "hobby")
    assert birds.questions[1].text == 'Which bird\nsays "who", at night?'
    assert [question.id for question in sums.questions] == [0, 1, 2, 3]
    assert (birds.category, sums.category, sums.title) == ("other", "STEM", "sums of two")


def test_all_57_subjects_have_their_category_and_questions(data: Data) -> None:
    sizes = {"test": 14042, "val": 1531}
    for split, size in sizes.items():
        exam = read_exam(data("mmlu"), split)
        assert len(exam) == 57
        assert sum(len(subject.questions) for subject in exam) == size
        assert all(len(subject.examples) == 5 for subject in exam)
    totals = {
        name: sum(len(subject.questions) for subject in exam if subject.category == name)
        for name in CATEGORIES
    }
    # The totals of the guide's own table: each subject is in the category it was counted in.
    assert totals == {"STEM": 321, "other": 355, "social sciences": 337, "humanities": 518}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("test/birds_test.csv", "a,b,c,d,e\n", "5 fields"),
        ("test/birds_test.csv", "q,1,2,3,4,E\n", "ending in ['E']"),
        ("test/birds_test.csv", "q,1,2,3,4,A\n\n", "row 2"),
        ("categories.json", '{"birds": "animals"}', "'animals' for birds"),
        ("categories.json", "{", "JSON"),
    ],
)
def test_a_damaged_exam_is_refused_by_file_and_row(
    exam_folder: Path, tmp_path: Path, name: str, content: str, told: str
) -> None:
    shutil.copytree(exam_folder, tmp_path / "exam")
    (tmp_path / "exam" / name).write_text(content)
    with pytest.raises(UsageError) as caught:
        read_exam(tmp_path / "exam", "test")
    assert told in str(caught.value)
    assert Path(name).name in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\n", b'"an open quote' + b"x" * 200_000])
def test_a_file_of_questions_that_is_no_csv_is_refused(
    content: bytes, exam_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(exam_folder, tmp_path / "exam")
    (tmp_path / "exam/test/birds_test.csv").write_bytes(content)
    with pytest.raises(UsageError, match=r"birds_test\.csv"):
        read_exam(tmp_path / "exam", "test")


def test_more_shots_than_there_are_and_unknown_subjects_are_refused(exam_folder: Path) -> None:
    with pytest.raises(UsageError, match="got 2; lower --shots"):
        exam_of(exam_folder, num_examples=3)
    with pytest.raises(UsageError, match=r"birds, sums_of_two.*got 'fish'; choose"):
        read_exam(exam_folder, "test", ["birds", "fish"])
    with pytest.raises(UsageError, match=r"val/astronomy_val\.csv"):
        read_exam(exam_folder, "val")


def test_letters_are_the_tokens_after_answer(data: Data) -> None:
    assert letter_ids(Tokenizer.load(data("falcon-tokenizer")).encode) == (317, 341, 319, 361)
    with pytest.raises(CheckpointError, match="use --protocol generate"):
        letter_ids(encode_characters)


# ---- what is answered ----


@pytest.mark.parametrize("protocol", [HENDRYCKS, LM_EVAL])
def test_the_score_is_that_of_transformers_question_by_question(
    exam_folder: Path, model: Path, protocol: Protocol
) -> None:
    reference = AutoModelForCausalLM.from_pretrained(model, attn_implementation="sdpa").eval()
    encode = Tokenizer.load(model).encode
    exam = exam_of(exam_folder, protocol)
    with Engine(EngineConfig(model=str(model), max_len=256)) as engine:
        found = run(engine, exam)
    questions = [(subject, question) for subject in exam.subjects for question in subject.questions]
    assert len(found) == len(questions) == 7
    for answer, (subject, question) in zip(found, questions, strict=True):
        ids = encode(prompt_text(protocol, subject, question, 2))
        with torch.no_grad():
            logits = reference(torch.tensor([ids])).logits[0, -1].double()
        expected = logits.log_softmax(-1)[[317, 341, 319, 361]]
        assert answer.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
        assert answer.pred == LETTERS[int(expected.argmax())]
        assert (answer.truth, answer.num_prompt_tokens) == (question.answer, len(ids))


def test_generated_answers_are_the_first_letter_of_transformers_text(
    exam_folder: Path, model: Path
) -> None:
    reference = AutoModelForCausalLM.from_pretrained(model, attn_implementation="sdpa").eval()
    tokenizer = Tokenizer.load(model)
    exam = exam_of(exam_folder, GENERATE)
    with Engine(EngineConfig(model=str(model), max_len=256)) as engine:
        found = run(engine, exam)
    texts = []
    for subject in exam.subjects:
        for question in subject.questions:
            ids = tokenizer.encode(prompt_text(GENERATE, subject, question, 2))
            tokens = reference.generate(
                torch.tensor([ids]), max_new_tokens=32, do_sample=False, eos_token_id=11
            )
            texts.append(tokenizer.decode(tokens[0, len(ids) :].tolist()))
    letters = [
        next((c.upper() for c in text if c.isascii() and c.isalpha()), None) for text in texts
    ]
    assert [answer.pred for answer in found] == letters
    assert all(
        text.startswith(answer.text or "") for answer, text in zip(found, texts, strict=True)
    )


def test_a_prompt_as_long_as_the_positions_is_scored_after_its_last_token(
    exam_folder: Path, model: Path
) -> None:
    exam = exam_of(exam_folder, LM_EVAL)
    with Engine(EngineConfig(model=str(model), max_len=64)) as engine:
        found = run(engine, exam)
        ids = engine.tokenizer.encode(
            prompt_text(LM_EVAL, exam.subjects[0], exam.subjects[0].questions[0], 2)
        )
        logits = engine.logits(torch.tensor([ids[-64:]]))[0, -1].double()
    assert len(ids) > 64
    assert found[0].num_prompt_tokens == 64
    assert found[0].logprobs == pytest.approx(
        logits.log_softmax(-1)[[317, 341, 319, 361]].tolist(), abs=1e-5
    )


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
def test_prefix_reuse_and_batches_change_no_answer(
    exam_folder: Path, model: Path, protocol: Protocol
) -> None:
    exam = exam_of(exam_folder, protocol)
    config = EngineConfig(model=str(model), max_len=256)
    with Engine(config) as engine:
        together = run(engine, exam)
    with Engine(replace(config, reuse_prefixes=False)) as engine:
        alone = by_key([answer for one in one_by_one(exam) for answer in answers(engine, one)])
    assert_alike(together, alone)


@pytest.mark.slow
def test_two_ranks_give_the_same_answers_as_one(exam_folder: Path, model: Path) -> None:
    exam = exam_of(exam_folder)
    config = EngineConfig(model=str(model), max_len=256)
    with Engine(config) as engine:
        one = run(engine, exam)
    with Engine(replace(config, world_size=2, max_batch_tokens=50)) as engine:
        assert_alike(one, run(engine, exam))


def assert_alike(found: list[Answer], others: list[Answer]) -> None:
    assert [answer.pred for answer in found] == [answer.pred for answer in others]
    for one, other in zip(found, others, strict=True):
        assert one.logprobs == (other.logprobs and pytest.approx(other.logprobs, abs=1e-4))


def one_by_one(exam: Exam) -> list[Exam]:
    return [
        replace(exam, subjects=[replace(subject, questions=(question,))])
        for subject in exam.subjects
        for question in subject.questions
    ]


def test_questions_that_do_not_fit_are_reported_and_not_counted(
    exam_folder: Path, model: Path
) -> None:
    exam = exam_of(exam_folder, HENDRYCKS, 0)
    encode = Tokenizer.load(model).encode
    lengths = {
        (subject.name, question.id): len(encode(prompt_text(HENDRYCKS, subject, question, 0)))
        for subject in exam.subjects
        for question in subject.questions
    }
    longest = lengths["birds", 0]
    with Engine(EngineConfig(model=str(model), max_len=longest)) as engine:
        found = score(exam.subjects, run(engine, exam))
    dropped = [key for key, length in lengths.items() if length + 1 > longest]
    assert ("birds", 0) in dropped
    assert [(answer.subject, answer.id) for answer in found.dropped] == dropped
    assert found.all.total == 7 - len(dropped) > 0


# ---- what is counted ----


def answer(
    subject: str, number: int, truth: str, pred: str | None, dropped: bool = False
) -> Answer:
    return Answer(subject, number, truth, pred, 5, 100, dropped=dropped)


def test_micro_counts_questions_and_macro_subjects(exam_folder: Path) -> None:
    subjects = read_exam(exam_folder, "test")
    preds = {"birds": "AXB", "sums_of_two": "AAAA"}
    found = [
        answer(subject.name, question.id, question.answer, pred)
        for subject in subjects
        for question, pred in zip(subject.questions, preds[subject.name], strict=True)
    ]
    counted = score(subjects, found)
    assert (counted.all.right, counted.all.total) == (4, 7)
    assert counted.macro == pytest.approx((2 / 3 + 2 / 4) / 2)
    assert counted.categories["STEM"].accuracy == 0.5
    assert counted.categories["humanities"].accuracy is None


def test_intervals_are_wilsons() -> None:
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (5, 0, 2 / 2**5),
        (1, 6, 2 * (1 + 7) / 2**7),
        (8, 2, 2 * (1 + 10 + 45) / 2**10),
        (3, 3, 1.0),
        (3, 4, 1.0),
    ],
)
def test_mcnemars_p_is_the_binomials(first: int, second: int, p: float) -> None:
    assert mcnemar(first, second) == p


def test_mcnemars_p_of_many_pairs_is_a_number() -> None:
    assert mcnemar(5000, 5200) == pytest.approx(math.erfc(199 / math.sqrt(2 * 10200)), rel=2e-3)


def document(found: list[Answer], **settings: object) -> dict[str, object]:
    """As much of a result file as a comparison reads."""
    same = {"protocol": "hendrycks", "protocol_version": 1, "split": "test", "shots": 5}
    result = {
        **same,
        "exam_sha256": "0",
        "subjects": {"birds": {"category": "other"}, "sums": {"category": "STEM"}},
        "predictions": [
            {
                "subject": a.subject,
                "id": a.id,
                "truth": a.truth,
                "pred": a.pred,
                "num_examples": 5,
                "num_prompt_tokens": 100,
                "dropped": a.dropped,
            }
            for a in found
        ],
    }
    return {
        "format": "gyrfalcon-result",
        "version": 1,
        "kind": "mmlu",
        "result": {**result, **settings},
    }


def test_two_runs_are_compared_pair_by_pair() -> None:
    preds = [("A", "A"), ("B", "B"), ("A", "C"), ("A", "D"), ("C", "A"), ("D", "C"), (None, None)]
    one = [answer("birds", i, "A", pred) for i, (pred, _) in enumerate(preds)]
    two = [answer("birds", i, "A", pred) for i, (_, pred) in enumerate(preds)]
    one += [answer("sums", 0, "B", "B"), answer("sums", 1, "B", None, dropped=True)]
    two += [answer("sums", 0, "B", "A"), answer("sums", 1, "B", "B")]
    found = compare(document(one), document(list(reversed(two))))
    birds = found.categories["other"]
    assert (birds.total, birds.same, birds.both_right) == (7, 3, 1)
    assert (birds.only_first, birds.only_second, birds.p) == (2, 1, 1.0)
    assert (found.all.total, found.all.only_first, found.num_left_out) == (8, 3, 1)
    assert found.all.p == 2 * (1 + 4) / 2**4


@pytest.mark.parametrize("name", ["protocol", "split", "shots", "exam_sha256"])
def test_runs_that_asked_something_else_are_not_compared(name: str) -> None:
    found = [answer("birds", 0, "A", "A")]
    with pytest.raises(UsageError, match="two runs with the same"):
        compare(document(found), document(found, **{name: "other"}))


def test_runs_that_asked_something_else_are_told_what() -> None:
    short = [answer("birds", 0, "A", "A")]
    whole = document([*short, answer("birds", 1, "B", "B")])
    other = document([answer("sums", 0, "A", "A")], exam_sha256="1")
    for one, two, got in (
        (whole, document(short, shots=0), "old: 5; new: 0"),
        (
            whole,
            document(short, exam_sha256="1"),
            "old: 2 questions of 1 subject; new: 1 question of 1 subject",
        ),
        (
            whole,
            other,
            "old: 2 questions of 1 subject, birds among them; "
            "new: 1 question of 1 subject, sums among them",
        ),
        (
            document(short),
            document(short, exam_sha256="1"),
            "old: 1 question of 1 subject, worded otherwise; "
            "new: 1 question of 1 subject, worded otherwise",
        ),
    ):
        with pytest.raises(UsageError) as caught:
            compare(one, two, ("old", "new"))
        assert caught.value.got == got


# ---- published figures ----


def test_the_figures_of_7b_and_40b_are_known_by_shape(data: Data) -> None:
    seven = known(ModelConfig.from_file(data("falcon-configs/falcon-7b/config.rw-2023-07.json")))
    assert seven is not None
    (figure,) = seven.mmlu
    assert (figure.right, figure.total, len(figure.subjects)) == (3882, 14042, 57)
    reference = json.loads(data("reference-outputs/mmlu-falcon-7b.json").read_text())["subjects"]
    assert figure.subjects == {n: (c["right"], c["total"]) for n, c in reference.items()}
    forty = known(
        ModelConfig.from_file(data("falcon-configs/derived/falcon-40b-instruct/config.json"))
    )
    assert forty is not None
    assert [(f.right, f.total) for f in forty.mmlu[:2]] == [(841, 1531), (841, 1531)]
    assert [f.accuracy for f in forty.mmlu[2:]] == [0.558, 0.571, 0.527]
    for figure in forty.mmlu[:2]:
        assert sum(right for right, _ in figure.categories.values()) == 841


def test_no_figures_are_known_for_another_shape(data: Data) -> None:
    seven = ModelConfig.from_file(data("falcon-configs/falcon-7b/config.rw-2023-07.json"))
    assert known(replace(seven, num_layers=31)) is None
    assert known(replace(seven, bias=True)) is None
    assert known(replace(seven, tied=False)) is not None


def stand_in(right: int, protocol: str = "hendrycks") -> Golden:
    subjects = {"birds": (right, 3), "sums_of_two": (1, 4)}
    figure = MMLUFigure("paper", protocol, "test", (right + 1) / 7, right + 1, 7, subjects, {})
    return Golden("stand-in", (figure,), None)


def test_a_score_is_compared_with_a_figure_for_the_same_questions(exam_folder: Path) -> None:
    subjects = [
        replace(subject, examples=subject.examples * 3)
        for subject in read_exam(exam_folder, "test")
    ]
    exam = Exam(subjects, "test", HENDRYCKS, 5)
    found = [
        answer(subject.name, question.id, question.answer, "A")
        for subject in subjects
        for question in subject.questions
    ]
    counted = score(subjects, found)
    (close,) = beside(stand_in(1), counted, exam)
    assert close.agrees is True
    assert (close.subjects_alike, close.subjects_compared) == (1, 2)
    (part,) = beside(
        stand_in(3), score(subjects[:1], found[:3]), replace(exam, subjects=subjects[:1])
    )
    assert (part.theirs, part.agrees) == (1.0, False)
    (other,) = beside(stand_in(1, "helm"), counted, exam)
    assert (other.agrees, other.why_not) == (None, "another way to ask")


# ---- the command ----


def command(model: Path, exam_folder: Path, output: Path, *more: str) -> list[str]:
    words = ["mmlu", str(model), "-d", str(exam_folder), "-o", str(output), "--shots", "2"]
    return [*words, "--max-len", "256", *more]


def cache_rows(output: Path) -> list[list[str]]:
    with (output / "cache0.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_the_command_writes_the_guides_files(
    model: Path, exam_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(model, exam_folder, tmp_path)) == 0
    assert "all questions" in capsys.readouterr().out
    written = json.loads((tmp_path / "mmlu.json").read_text())["result"]
    rows = cache_rows(tmp_path)
    assert rows[0] == ["task", "question_id", "truth", "pred"]
    assert sorted(rows[1:]) == sorted(
        [p["subject"], str(p["id"]), p["truth"], p["pred"]] for p in written["predictions"]
    )
    right = {
        name: sum(row[2] == row[3] for row in rows if row[0] == name)
        for name in ("birds", "sums_of_two")
    }
    accuracies = json.loads((tmp_path / "result_0_subject_acc.json").read_text())
    assert accuracies == {"birds": right["birds"] / 3, "sums_of_two": right["sums_of_two"] / 4}
    classes = json.loads((tmp_path / "result_0_classes_acc.json").read_text())
    assert list(classes) == ["STEM", "other", "social sciences", "humanities", "Avg"]
    assert classes["Avg"] == written["accuracy"] == sum(right.values()) / 7
    assert all(len(p["logprobs"]) == 4 for p in written["predictions"])
    assert "birds: " in (tmp_path / "device0.log").read_text()


def test_figures_that_nobody_published_are_refused_before_the_run(
    model: Path, exam_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    assert main(command(model, exam_folder, output, "--golden")) == 2
    told = capsys.readouterr().err
    assert "wanted a model with published MMLU figures (falcon-" in told
    assert f"got {model}, for which none are known; leave --golden out" in told
    assert not output.exists()


def test_a_run_that_cannot_be_compared_is_refused_before_it(
    model: Path, exam_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(command(model, exam_folder, one, "--limit", "1", "--subjects", "birds")) == 0
    shown = capsys.readouterr()
    assert "hendrycks, test, 2 shots, 1 subject\n" in shown.out
    assert "1 question in " in shown.err
    assert "0 of 1 question answered" in (one / "device0.log").read_text()
    earlier = str(one / "mmlu.json")
    assert main(command(model, exam_folder, two, "--compare", earlier)) == 2
    assert (
        "wanted two runs with the same questions, got A (this run): 7 questions of 2 subjects, "
        f"sums_of_two among them; B ({earlier}): 1 question of 1 subject; compare"
    ) in " ".join(capsys.readouterr().err.split())
    assert not two.exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_without_counting_twice(
    model: Path, exam_folder: Path, tmp_path: Path, data: Data
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = [*command(model, data("mmlu"), broken, "--limit", "40"), "--shots", "0"]
    words += ["--subjects", "astronomy,virology,world_religions"]
    process = subprocess.Popen([sys.executable, "-m", "gyrfalcon", *words], env=environment())
    deadline = time.monotonic() + 120
    while len(journal_lines(broken)) < 20 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = len(journal_lines(broken)) - 1
    assert 19 <= kept < 120, "the kill came too late or too early to test anything"
    with (broken / "journal0.jsonl").open("a") as file:
        file.write('{"subject": "astro')  # a line that the kill cut short
    assert main(words) == 0
    assert main([str(whole) if word == str(broken) else word for word in words]) == 0
    resumed, fresh = (json.loads((f / "mmlu.json").read_text())["result"] for f in (broken, whole))
    assert (resumed["num_resumed"], resumed["num_computed"]) == (kept, 120 - kept)
    assert [p["pred"] for p in resumed["predictions"]] == [p["pred"] for p in fresh["predictions"]]
    assert resumed["subjects"] == fresh["subjects"]
    assert sorted(cache_rows(broken)) == sorted(cache_rows(whole))
    assert len(cache_rows(broken)) == 121


def journal_lines(output: Path) -> list[str]:
    path = output / "journal0.jsonl"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_an_unfinished_run_of_something_else_is_not_gone_on_with(tmp_path: Path) -> None:
    line = {"subject": "a", "id": 0, "truth": "A", "pred": "B", "num_examples": 5}
    line["num_prompt_tokens"] = 9
    identity = {"model": "m", "shots": 5}
    text = f"{json.dumps(identity)}\n{json.dumps(line)}\n"
    (tmp_path / "journal0.jsonl").write_text(text)
    assert unfinished(tmp_path, identity) == [Answer("a", 0, "A", "B", 5, 9)]
    with pytest.raises(UsageError, match="another shots"):
        unfinished(tmp_path, {**identity, "shots": 4})
    (tmp_path / "journal0.jsonl").write_text(text + '{"finished": true}\n')
    assert unfinished(tmp_path, {**identity, "shots": 4}) == []


def test_two_result_files_are_compared_without_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for name, pred in (("a", "A"), ("b", "B")):
        files.append(str(tmp_path / f"{name}.json"))
        found = document([answer("birds", 0, "A", pred)])
        Path(files[-1]).write_text(json.dumps(found))
    assert main(["mmlu", "--compare", *files, "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert main(["mmlu", "--compare", *files]) == 0
    assert capsys.readouterr().out.startswith(f"A: {files[0]}, B: {files[1]}\n")
    assert (told["all"]["only_first"], told["all"]["agreement"], told["all"]["p"]) == (1, 0.0, 1.0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["mmlu"], "a MODEL, or two result files"),
        (["mmlu", "m"], "-d DIR"),
        (["mmlu", "m", "-d", "d", "--compare", "a", "b"], "one result file beside a MODEL"),
        (["mmlu", "m", "-d", "d", "--split", "dev"], "--split test | val"),
    ],
)
def test_wrong_usage_is_told_in_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err
