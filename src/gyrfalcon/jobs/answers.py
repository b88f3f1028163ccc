"""The lines of a part: its rows through the engine, a few batches' worth of them at a time."""

import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from gyrfalcon.engine.engine import Engine
from gyrfalcon.errors import GyrfalconError, RequestError
from gyrfalcon.jobs.folder import PartSums, sums_of
from gyrfalcon.jobs.job_file import Job
from gyrfalcon.jobs.plan import Part, doubled_id
from gyrfalcon.jobs.rows import BadRow, Row
from gyrfalcon.jobs.samples import Sample, samples_json
from gyrfalcon.jobs.source import rows_from
from gyrfalcon.jobs.task import STOP, RowEncoder, Task, Tokens, at_row
from gyrfalcon.request import Delta, Token

AHEAD = 2  # rows queued for each sequence that can run at once, so that every batch is full


@dataclass(slots=True)
class Answer:
    """A row on its way: what the engine has given so far, and the line when it has ended."""

    row: Row | BadRow
    tokens: Tokens | None = None
    samples: list[Sample] = field(default_factory=list)
    scores: tuple[Token | None, ...] = ()
    error: GyrfalconError | None = None

    def take(self, delta: Delta) -> None:
        """Takes what a step gave."""
        self.samples[delta.index].take(delta)
        self.scores = self.scores or delta.prompt_logprobs or ()
        if delta.failure is not None:
            self.error = at_row(delta.failure, self.row)

    @property
    def has_ended(self) -> bool:
        return self.error is not None or all(sample.finish_reason for sample in self.samples)

    @property
    def num_tokens(self) -> int:
        """Scored or generated."""
        if self.error is not None or self.tokens is None:
            return 0
        return len(self.scores[self.tokens.first :]) + sum(len(s.tokens) for s in self.samples)

    def line(self, task: Task) -> bytes:
        """Its line of the part, the same whenever and wherever it was computed."""
        found: dict[str, object] = {"id": self.row.id}
        if self.error is not None:
            found["error"] = str(self.error)
        elif self.tokens is not None and task.scores:
            found |= self._scored(self.tokens, task)
        elif self.tokens is not None:
            found |= {"num_prompt_tokens": len(self.tokens.ids), **samples_json(self.samples)}
        return json.dumps(found, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"

    def _scored(self, tokens: Tokens, task: Task) -> dict[str, object]:
        scored = [token for token in self.scores[tokens.first :] if token is not None]
        logprobs = [token.logprob for token in scored if token.logprob is not None]
        continued = isinstance(self.row, Row) and self.row.continuation is not None
        each = {"token_ids": [token.id for token in scored], "logprobs": logprobs}
        return {
            "num_prompt_tokens": tokens.first if continued else len(tokens.ids),
            "num_scored_tokens": len(scored),
            "sum_logprob": math.fsum(logprobs),
            "is_greedy": all(token.top[0][0] == token.id for token in scored),
            **(each if task.per_token else {}),
        }


def answer_part(
    engine: Engine, job: Job, encode: RowEncoder, part: Part, seen: Callable[[int], object]
) -> tuple[bytes, PartSums]:
    """The content of a part and its sums; calls `seen` for each row. The error of a row from which no
    result can come is raised where the task is to stop at it.
    """
    answers = list(_answers(job, encode, part))
    waiting = deque(answer for answer in answers if answer.tokens is not None)
    seen(len(answers) - len(waiting))
    running: dict[int, Answer] = {}
    try:
        while waiting or running:
            while waiting and len(running) < AHEAD * engine.config.max_sequences:
                if not _add(engine, waiting.popleft(), running, encode.task):
                    seen(1)
            for delta in engine.step():
                answer = running.get(delta.request_id)
                if answer is None:
                    continue  # another sample of it failed before
                answer.take(delta)
                _raise_if_stopped(answer, encode.task)
                if answer.has_ended:
                    engine.abort(delta.request_id)
                    del running[delta.request_id]
                    seen(1)
    finally:
        for number in running:
            engine.abort(number)
    num_errors = sum(answer.error is not None for answer in answers)
    prompt_tokens = sum(len(a.tokens.ids) for a in answers if a.tokens and a.error is None)
    num_tokens = sum(answer.num_tokens for answer in answers)
    counts = (len(answers), num_errors, prompt_tokens, num_tokens)
    return sums_of((answer.line(encode.task) for answer in answers), counts)


def _answers(job: Job, encode: RowEncoder, part: Part) -> Iterator[Answer]:
    """The rows of a part, encoded; with an error where they cannot be."""
    task, file = encode.task, job.files[part.file].source()
    rows = rows_from(file, part.start, task.columns, scored=task.scores)
    for _, row in islice(rows, part.num_rows):
        answer = Answer(row)
        if first := job.plan.doubled.get(row.where):
            answer.row = BadRow(row.where, row.where, doubled_id(row.where, first))
        if isinstance(answer.row, BadRow):
            answer.error = answer.row.error
        else:
            try:
                answer.tokens = encode(answer.row)
                answer.samples = [Sample() for _ in range(answer.tokens.params.n)]
            except GyrfalconError as error:
                answer.error = error
        _raise_if_stopped(answer, task)
        yield answer


def _add(engine: Engine, answer: Answer, running: dict[int, Answer], task: Task) -> bool:
    """Queues a row, unless the engine refuses it: that is its error."""
    assert answer.tokens is not None
    try:
        running[engine.add(answer.tokens.ids, answer.tokens.params)] = answer
    except RequestError as error:
        answer.error = at_row(error, answer.row)
        _raise_if_stopped(answer, task)
        return False
    return True


def _raise_if_stopped(answer: Answer, task: Task) -> None:
    if answer.error is not None and task.on_error == STOP:
        raise answer.error
