"""Evaluates a model on an exam: prefills the common prefix of a subject's prompts once, the rest in
batches. No files.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, takewhile

import torch

from gyrfalcon.engine.engine import Engine
from gyrfalcon.errors import NotFinite
from gyrfalcon.measure.mmlu.exam import LETTERS, Subject
from gyrfalcon.measure.mmlu.prompts import Exam, Prompt, Protocol, fitted, letter_ids
from gyrfalcon.request import SamplingParams, check_finite

LetterLogprobs = tuple[Prompt, tuple[float, ...]]  # those of the four letters


@dataclass(frozen=True, slots=True)
class Answer:
    """The model's answer to one question: `logprobs` or `text`, as the protocol scores. A question
    that did not fit has neither and is `dropped`.
    """

    subject: str
    id: int
    truth: str
    pred: str | None  # a letter; None: no answer
    num_examples: int
    num_prompt_tokens: int
    logprobs: tuple[float, ...] | None = None  # of " A" to " D"
    text: str | None = None  # up to its first letter
    dropped: bool = False

    @property
    def right(self) -> bool:
        return self.pred == self.truth


def answers(engine: Engine, exam: Exam, skip: Collection[tuple[str, int]] = ()) -> Iterator[Answer]:
    """Yields the answers as they arrive, subject by subject; skips the (subject, id) in `skip`."""
    for subject in exam.subjects:
        prompts = [
            fitted(exam, subject, question, engine.tokenizer.encode, engine.max_len)
            for question in subject.questions
            if (subject.name, question.id) not in skip
        ]
        for prompt in prompts:
            if prompt.ids is None:
                yield _answer(subject, prompt, None)
        fitting = (prompt for prompt in prompts if prompt.ids is not None)
        for _, group in groupby(sorted(fitting, key=_num_examples), _num_examples):
            yield from _answer_group(engine, subject, exam.protocol, list(group))


def first_letter(text: str) -> str | None:
    """The answer in a generated text: its first ASCII letter, upper case; None without one."""
    found = re.search("[A-Za-z]", text)
    return found and found[0].upper()


def argmax_letter(logprobs: Sequence[float]) -> str:
    """The letter with the highest log-probability, the first of equal ones."""
    return LETTERS[max(range(len(LETTERS)), key=logprobs.__getitem__)]


def _answer_group(
    engine: Engine, subject: Subject, protocol: Protocol, prompts: Sequence[Prompt]
) -> Iterator[Answer]:
    """The answers to prompts with the same worked examples."""
    _prefill_shared_prefix(engine, prompts)
    if protocol.num_new_tokens > 1:
        for prompt, text in _generated(engine, prompts, protocol.num_new_tokens):
            yield _answer(subject, prompt, first_letter(text), text=text)
        return
    letters = letter_ids(partial(engine.tokenizer.encode, add_special_tokens=False))
    for prompt, logprobs in _likelihoods(engine, prompts, letters):
        yield _answer(subject, prompt, argmax_letter(logprobs), logprobs=logprobs)


def _prefill_shared_prefix(engine: Engine, prompts: Sequence[Prompt]) -> None:
    """Leaves the common prefix of the prompts in the cache, for each to reuse."""
    start = _shared_prefix([_ids(prompt) for prompt in prompts])
    if len(prompts) > 1 and start and engine.config.reuse_prefixes:
        [output] = engine.generate([start], SamplingParams(max_new_tokens=0))
        check_finite(*output.completions)


def _shared_prefix(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The common prefix: what the first and the last in sorted order share, all share."""
    pairs = zip(min(rows), max(rows), strict=False)
    return tuple(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _likelihoods(
    engine: Engine, prompts: Sequence[Prompt], letters: tuple[int, ...]
) -> Iterator[LetterLogprobs]:
    """The letters' log-probabilities after each prompt, in order of completion."""
    params = SamplingParams(max_new_tokens=1, logprob_ids=letters)
    waiting: dict[int, Prompt] = {}
    for prompt in prompts:
        if len(_ids(prompt)) < engine.max_len:
            waiting[engine.add(_ids(prompt), params)] = prompt
        else:
            yield prompt, _likelihoods_of_last(engine, _ids(prompt), letters)
    while waiting:
        for delta in engine.step():
            check_finite(delta)
            assert delta.token is not None
            asked = tuple(logprob for _, logprob in delta.token.asked)
            yield waiting.pop(delta.request_id), asked


def _likelihoods_of_last(
    engine: Engine, ids: Sequence[int], letters: tuple[int, ...]
) -> tuple[float, ...]:
    """For a prompt as long as the model's positions, after which nothing can be sampled."""
    logits = engine.logits(torch.tensor([ids]))[0, -1]
    if not logits.isfinite().all():
        raise NotFinite.logits(f"after a prompt of {len(ids)} tokens")
    logprobs = logits.double().log_softmax(dim=-1)
    return tuple(logprobs[list(letters)].tolist())


def _generated(
    engine: Engine, prompts: Sequence[Prompt], num_new_tokens: int
) -> Iterator[tuple[Prompt, str]]:
    """Each prompt's greedy continuation up to its first letter."""
    params = SamplingParams(max_new_tokens=num_new_tokens)
    waiting = {engine.add(_ids(prompt), params): prompt for prompt in prompts}
    texts = dict.fromkeys(waiting, "")
    while waiting:
        for delta in engine.step():
            check_finite(delta)
            texts[delta.request_id] += delta.text
            if delta.finish_reason is not None or first_letter(delta.text):
                engine.abort(delta.request_id)
                yield waiting.pop(delta.request_id), texts[delta.request_id]


def _answer(
    subject: Subject,
    prompt: Prompt,
    pred: str | None,
    logprobs: tuple[float, ...] | None = None,
    text: str | None = None,
) -> Answer:
    return Answer(
        subject=subject.name,
        id=prompt.question.id,
        truth=prompt.question.answer,
        pred=pred,
        num_examples=prompt.num_examples,
        num_prompt_tokens=len(prompt.ids or ()),
        logprobs=logprobs,
        text=text,
        dropped=prompt.ids is None,
    )


def _ids(prompt: Prompt) -> tuple[int, ...]:
    assert prompt.ids is not None
    return prompt.ids


def _num_examples(prompt: Prompt) -> int:
    return prompt.num_examples
