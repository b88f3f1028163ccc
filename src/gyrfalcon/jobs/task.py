"""What a job does with each row, as settings that go to JSON and back, and as tokens for the engine."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import blake2b
from json import dumps

from gyrfalcon.bounds import shown
from gyrfalcon.config import ModelConfig
from gyrfalcon.engine.prompts import Asked, Longest, check
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.errors import GyrfalconError, RequestError, UsageError
from gyrfalcon.jobs.rows import BadRow, Columns, Row, RowId
from gyrfalcon.request import SamplingParams
from gyrfalcon.structured import StructuredOutput
from gyrfalcon.text.chat import Message
from gyrfalcon.text.tokenizer import Tokenizer

SCORE, GENERATE = "score", "generate"
STOP, WRITE = "stop", "write"
COLUMNS = Columns()
# The most likely token tells whether the scored one is greedy.
SCORING = SamplingParams(max_new_tokens=0, prompt_logprobs=1)


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked of every row.

    kind: score, the log-probabilities of the prompt or of its continuation; or generate.
    on_error: stop the job at a row from which no result can come, or write the error in its place.
    part_rows: rows of a part, the unit of work that is done whole or not at all.
    per_token: a scored row has its tokens and their log-probabilities, not their sum alone.
    chat: each prompt is a user's message for the model's chat template.
    seed: from which, with a row's id, its samples are drawn.
    """

    kind: str
    columns: Columns = COLUMNS
    on_error: str = STOP
    part_rows: int = 500
    per_token: bool = True
    chat: bool = False
    params: SamplingParams = SCORING
    seed: int = 0

    @property
    def scores(self) -> bool:
        return self.kind == SCORE

    def to_json(self) -> dict[str, object]:
        """All but the seed, which may have been drawn."""
        params = {name: value for name, value in asdict(self.params).items() if name != "seed"}
        settings: dict[str, object] = {
            "kind": self.kind,
            **{f"{name}_field": value for name, value in asdict(self.columns).items()},
            "on_error": self.on_error,
            "part_rows": self.part_rows,
        }
        own = {"per_token": self.per_token} if self.scores else {"chat": self.chat, **params}
        return {name: _plain(value) for name, value in (settings | own).items()}

    @classmethod
    def from_json(cls, raw: Mapping[str, object], seed: int) -> "Task":
        """What to_json() gave; UsageError or RequestError for anything else."""
        try:
            columns = Columns(**{name: str(raw[f"{name}_field"]) for name in Columns.__slots__})
            kind, part_rows = str(raw["kind"]), raw["part_rows"]
            if not isinstance(part_rows, int):
                raise TypeError(f"part_rows {shown(part_rows)}")
            common = cls(kind, columns, str(raw["on_error"]), part_rows, seed=seed)
            if kind == SCORE:
                return replace(common, per_token=raw["per_token"] is True)
            names = {one.name for one in fields(SamplingParams)} - {"seed"}
            asked = {name: raw[name] for name in names}
            asked["logit_bias"] = {}
            if asked["structured"] is not None:
                asked["structured"] = StructuredOutput(**asked["structured"])  # type: ignore[arg-type]  # checked there
            params = SamplingParams(**asked)  # type: ignore[arg-type]  # checked there
        except (KeyError, TypeError) as error:
            got = f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)
            raise UsageError("the settings of a job", got, "name another folder") from None
        return replace(common, chat=raw["chat"] is True, params=params)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A row as the engine takes it. Of a scored one the tokens from `first` on count."""

    ids: tuple[int, ...]
    params: SamplingParams
    first: int = field(default=1)


@dataclass(frozen=True, slots=True)
class RowEncoder:
    """Rows → tokens, for one task on one model."""

    task: Task
    longest: Longest
    model: ModelConfig
    tokenizer: Tokenizer

    @classmethod
    def of(
        cls,
        task: Task,
        config: EngineConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        max_len: int,
    ) -> "RowEncoder":
        """That of an engine with this config, whose longest sequence is `max_len`."""
        return cls(
            _with_chat_stops(task, tokenizer), Longest(max_len, config, model), model, tokenizer
        )

    def __call__(self, row: Row) -> Tokens:
        """GyrfalconError, which names the row, for one that the model cannot take."""
        try:
            tokens = self._scored(row) if self.task.scores else self._continued(row)
            asked = Asked(None, tokens.ids, tokens.params)
            self.longest.check(asked)
            check(asked, self.model.vocab_size, self.tokenizer)
            return tokens
        except GyrfalconError as error:
            raise at_row(error, row) from None

    def _scored(self, row: Row) -> Tokens:
        if row.continuation is None:
            return Tokens(self._ids(row.prompt), SCORING)
        if isinstance(row.prompt, str) and isinstance(row.continuation, str):
            prompt = row.prompt.rstrip()  # a blank between the two begins a token of the second
            whole, context = self._ids(row.prompt + row.continuation), self._ids(prompt)
        else:
            context = self._ids(row.prompt)
            whole = (*context, *self._ids(row.continuation))
        if not context:
            do = "write a token before it, such as the text <|endoftext|>"
            raise RequestError("a prompt of at least one token", "an empty one", do)
        if len(whole) <= len(context):
            do = "write a continuation"
            raise RequestError("a continuation of at least one token", "an empty one", do)
        return Tokens(whole, SCORING, len(context))

    def _continued(self, row: Row) -> Tokens:
        params = self.task.params
        if params.temperature > 0:
            params = replace(params, seed=row_seed(self.task.seed, row.id))
        if not self.task.chat:
            return Tokens(self._ids(row.prompt), params)
        if not isinstance(row.prompt, str):
            raise RequestError("text for a chat template", "token ids", "leave --chat out")
        text = self.tokenizer.chat_prompt([Message("user", row.prompt)])
        return Tokens(self._ids(text, add_special_tokens=False), params)

    def _ids(
        self, prompt: str | tuple[int, ...], add_special_tokens: bool = True
    ) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return tuple(self.longest.encode(prompt, self.tokenizer, add_special_tokens))
        return prompt


def row_seed(seed: int, row_id: RowId) -> int:
    """The seed of a row's samples: the same whichever worker draws them, and when."""
    digest = blake2b(f"{seed} {dumps(row_id)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def at_row(error: GyrfalconError, row: Row | BadRow) -> GyrfalconError:
    """The error, with the row that it is about."""
    if row.where in str(error):
        return error
    return type(error)(error.wanted, f"{error.got} ({row.where})", error.do)


def _with_chat_stops(task: Task, tokenizer: Tokenizer) -> Task:
    """The answer's end among the stop strings of a chat."""
    if not task.chat or task.params.ignore_eos:
        return task
    stop = (*task.params.stop_strings, *tokenizer.chat.stops)
    return replace(task, params=replace(task.params, stop=stop))


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
