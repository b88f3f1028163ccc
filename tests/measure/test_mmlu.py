"""MMLU's answers as transformers has them, however they are computed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import make_exam_taker
from exams import Data, exam_of
from transformers import AutoModelForCausalLM

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.measure.mmlu.exam import LETTERS
from gyrfalcon.measure.mmlu.prompts import (
    GENERATE,
    HENDRYCKS,
    LM_EVAL,
    PROTOCOLS,
    Exam,
    Protocol,
    prompt_text,
)
from gyrfalcon.measure.mmlu.run import Answer, answers
from gyrfalcon.measure.mmlu.score import score
from gyrfalcon.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_exam_taker(tmp_path_factory.mktemp("model") / "tiny", data("falcon-tokenizer"))


def by_key(found: list[Answer]) -> list[Answer]:
    return sorted(found, key=lambda answer: (answer.subject, answer.id))


def run(engine: Engine, exam: Exam) -> list[Answer]:
    return by_key(list(answers(engine, exam)))


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
