"""What a choice looks like in an answer, whole or in parts: of completions, and of chat."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from gyrfalcon.request import Delta, FinishReason, Token
from gyrfalcon.serve.logprobs import CompletionLogprobs, chat_logprobs, prompt_logprobs
from gyrfalcon.serve.requests import ChatRequest, CompletionRequest
from gyrfalcon.text.tokenizer import Tokenizer

Json = dict[str, object]


@dataclass(slots=True)
class PromptInfo:
    """One prompt of a request. `text` is what `echo` repeats; `scores` come with its first token."""

    ids: Sequence[int]
    text: str = ""
    scores: Sequence[Token | None] | None = None


class Format(Protocol):
    """How one request's choices are written. A sample has the place of its prompt and its own."""

    id_prefix: str
    kind: str
    chunk_kind: str
    prompts: Sequence[PromptInfo]
    num_samples: int  # of each prompt
    needs_scores: bool  # of the prompt, before anything can be written
    shows_tokens: bool  # even those without text

    def num_entries(self, prompt_len: int, num_new_tokens: int) -> int:
        """Tokens and log-probabilities that an answer holds for a prompt and for this many new tokens of all
        its samples.
        """

    def opening(self, prompt: int, index: int) -> Json | None:
        """The choice of the chunk before a sample's first token, if there is one."""

    def part(self, prompt: int, delta: Delta) -> Json:
        """The choice of a delta's chunk."""

    def whole(self, prompt: int, index: int, deltas: Sequence[Delta]) -> Json:
        """The choice of a whole answer."""

    def extras(self) -> Json:
        """What stands beside the choices of a whole answer, or of the first chunk."""


class CompletionFormat:
    """Of /v1/completions."""

    id_prefix = "cmpl-"
    kind = chunk_kind = "text_completion"

    def __init__(
        self, asked: CompletionRequest, prompts: Sequence[PromptInfo], tokenizer: Tokenizer
    ) -> None:
        generation = asked.generation
        self._asked, self.prompts, self._tokenizer = asked, prompts, tokenizer
        self._params = generation.params
        self._shows_ids = generation.return_token_ids
        self.num_samples = self._params.n
        self.needs_scores = self._params.prompt_logprobs is not None
        self.shows_tokens = self._shows_ids or self._params.logprobs is not None
        self._logprobs: dict[tuple[int, int], CompletionLogprobs] = {}

    def num_entries(self, prompt_len: int, num_new_tokens: int) -> int:
        """The prompt is in every choice."""
        alone, echoed = self._asked.num_prompt_logprobs, self._params.logprobs
        of_prompt = 0 if alone is None else 1 + alone
        of_prompt += 0 if echoed is None or not self._asked.echo else 1 + echoed
        return prompt_len * of_prompt * self.num_samples + num_new_tokens * (1 + (echoed or 0))

    def opening(self, prompt: int, index: int) -> Json | None:
        """The prompt, where it is echoed or looked at."""
        info = self.prompts[prompt]
        if not (self._asked.echo or self._shows_ids or self.needs_scores):
            return None
        text = info.text if self._asked.echo else ""
        choice = self._choice(prompt, index, text, self._of_prompt(prompt, index), None)
        return choice | self._prompt_fields(info)

    def part(self, prompt: int, delta: Delta) -> Json:
        """The text and tokens of a delta."""
        tokens = _tokens([delta])
        logprobs = self._of_tokens(prompt, delta.index, tokens)
        choice = self._choice(prompt, delta.index, delta.text, logprobs, delta.finish_reason)
        return choice | ({"token_ids": _ids(tokens)} if self._shows_ids else {})

    def whole(self, prompt: int, index: int, deltas: Sequence[Delta]) -> Json:
        """All of a sample, after its prompt where that is echoed."""
        info, tokens = self.prompts[prompt], _tokens(deltas)
        text = "".join(delta.text for delta in deltas)
        before = self._of_prompt(prompt, index)
        logprobs = self._of_tokens(prompt, index, tokens)
        if before is not None and logprobs is not None:
            logprobs = {name: [*_list(before[name]), *_list(logprobs[name])] for name in logprobs}
        if self._asked.echo:
            text = info.text + text
        choice = self._choice(prompt, index, text, logprobs, deltas[-1].finish_reason)
        choice |= self._prompt_fields(info)
        return choice | ({"token_ids": _ids(tokens)} if self._shows_ids else {})

    def extras(self) -> Json:
        return {}

    def _choice(
        self,
        prompt: int,
        index: int,
        text: str,
        logprobs: Json | None,
        reason: FinishReason | None,
    ) -> Json:
        return {
            "index": prompt * self.num_samples + index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": None if reason is None else reason.value,
        }

    def _prompt_fields(self, info: PromptInfo) -> Json:
        fields: Json = {}
        if self._asked.num_prompt_logprobs is not None:
            num_top = self._asked.num_prompt_logprobs
            fields["prompt_logprobs"] = prompt_logprobs(self._tokenizer, _scored(info), num_top)
        if self._shows_ids:
            fields["prompt_token_ids"] = list(info.ids)
        return fields

    def _of_prompt(self, prompt: int, index: int) -> Json | None:
        """The log-probabilities of an echoed prompt."""
        info = self.prompts[prompt]
        if self._params.logprobs is None or not self._asked.echo:
            return None
        num_top = self._params.logprobs
        tokens = [_with_top(token, num_top) for token in _scored(info)]
        return self._writer(prompt, index).of(tokens, info.ids)

    def _of_tokens(self, prompt: int, index: int, tokens: Sequence[Token]) -> Json | None:
        if self._params.logprobs is None:
            return None
        return self._writer(prompt, index).of(tokens)

    def _writer(self, prompt: int, index: int) -> CompletionLogprobs:
        key = prompt, index
        if key not in self._logprobs:
            self._logprobs[key] = CompletionLogprobs(self._tokenizer)
        return self._logprobs[key]


class ChatFormat:
    """Of /v1/chat/completions."""

    id_prefix = "chatcmpl-"
    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, asked: ChatRequest, prompt: PromptInfo, tokenizer: Tokenizer) -> None:
        generation = asked.generation
        self.prompts: Sequence[PromptInfo] = (prompt,)
        self._tokenizer = tokenizer
        self._params = generation.params
        self._shows_ids = generation.return_token_ids
        self.num_samples = self._params.n
        self.needs_scores = self._params.prompt_logprobs is not None
        self.shows_tokens = self._shows_ids or self._params.logprobs is not None

    def num_entries(self, prompt_len: int, num_new_tokens: int) -> int:
        """The prompt stands beside the choices."""
        scored = self._params.prompt_logprobs
        of_prompt = 0 if scored is None else 1 + scored
        return prompt_len * of_prompt + num_new_tokens * (1 + (self._params.logprobs or 0))

    def opening(self, prompt: int, index: int) -> Json | None:
        """The role."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def part(self, prompt: int, delta: Delta) -> Json:
        """The text and tokens of a delta."""
        content: Json = {"content": delta.text} if delta.text else {}
        return self._choice(delta.index, "delta", content, [delta])

    def whole(self, prompt: int, index: int, deltas: Sequence[Delta]) -> Json:
        """The message."""
        content = "".join(delta.text for delta in deltas)
        message: Json = {"role": "assistant", "content": content, "refusal": None}
        return self._choice(index, "message", message, deltas)

    def extras(self) -> Json:
        """The prompt's tokens and log-probabilities."""
        [info], fields = self.prompts, Json()
        if self.needs_scores:
            num_top = self._params.prompt_logprobs or 0
            fields["prompt_logprobs"] = prompt_logprobs(self._tokenizer, _scored(info), num_top)
        if self._shows_ids:
            fields["prompt_token_ids"] = list(info.ids)
        return fields

    def _choice(self, index: int, name: str, content: Json, deltas: Sequence[Delta]) -> Json:
        num_top, reason, tokens = self._params.logprobs, deltas[-1].finish_reason, _tokens(deltas)
        choice: Json = {
            "index": index,
            name: content,
            "logprobs": None
            if num_top is None
            else chat_logprobs(self._tokenizer, tokens, num_top),
            "finish_reason": None if reason is None else reason.value,
        }
        return choice | ({"token_ids": _ids(tokens)} if self._shows_ids else {})


def _tokens(deltas: Sequence[Delta]) -> list[Token]:
    return [delta.token for delta in deltas if delta.token is not None]


def _ids(tokens: Sequence[Token]) -> list[int]:
    return [token.id for token in tokens]


def _scored(info: PromptInfo) -> Sequence[Token | None]:
    assert info.scores is not None  # they come with the first token
    return info.scores


def _with_top(token: Token | None, num_top: int) -> Token | None:
    """A token of a prompt that was scored for more than is shown here."""
    return None if token is None else replace(token, top=token.top[:num_top])


def _list(value: object) -> list[object]:
    assert isinstance(value, list)
    return value
