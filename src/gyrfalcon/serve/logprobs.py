"""Log-probabilities as OpenAI's API writes them, for completions and for chat."""

import codecs
from collections.abc import Iterable, Mapping, Sequence

from gyrfalcon.request import Token
from gyrfalcon.text.tokenizer import Tokenizer

LEAST = -9999.0  # for a token that is forbidden: JSON has no infinity

Json = dict[str, object]


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """One token's text, special tokens' included. Bytes that are no whole characters are written as
    OpenAI does: bytes:\\xe2\\x80.
    """
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class CompletionLogprobs:
    """Those of one sample of /v1/completions, with where each token begins in its text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def of(self, tokens: Iterable[Token | None], prompt_ids: Sequence[int] = ()) -> Json:
        """The next tokens; None is the first of `prompt_ids`, which follows on nothing."""
        names, scores, tops, offsets = [], list[float | None](), list[Json | None](), []
        for place, token in enumerate(tokens):
            token_id = prompt_ids[place] if token is None else token.id
            names.append(token_text(self._tokenizer, token_id))
            scores.append(None if token is None else _number(token.logprob))
            tops.append(None if token is None else self._top(token))
            offsets.append(self._offset)
            text = self._decoder.decode(self._tokenizer.text_bytes.get(token_id, b""))
            self._offset += len(text)
        return {
            "tokens": names,
            "token_logprobs": scores,
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def _top(self, token: Token) -> Json:
        """The most likely tokens by their text, and the token itself."""
        found: Json = {}
        for token_id, logprob in (*token.top, (token.id, token.logprob)):
            found.setdefault(token_text(self._tokenizer, token_id), _number(logprob))
        return found


def chat_logprobs(tokenizer: Tokenizer, tokens: Iterable[Token], num_top: int) -> Json:
    """Those of generated tokens of a chat."""
    content = [
        _entry(tokenizer, token.id, token.logprob)
        | {"top_logprobs": [_entry(tokenizer, *one) for one in token.top[:num_top]]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(
    tokenizer: Tokenizer, tokens: Iterable[Token | None], num_top: int
) -> list[Mapping[str, Json] | None]:
    """Those of a prompt's tokens, as vLLM writes them: by token id, None for the first. `rank` is 1 for the
    most likely token.
    """
    return [None if token is None else _ranked(tokenizer, token, num_top) for token in tokens]


def _ranked(tokenizer: Tokenizer, token: Token, num_top: int) -> Mapping[str, Json]:
    ranks = {token_id: place for place, (token_id, _) in enumerate(token.top, 1)}
    return {
        str(token_id): {
            "logprob": _number(logprob),
            "rank": ranks.get(token_id, token.rank),
            "decoded_token": token_text(tokenizer, token_id),
        }
        for token_id, logprob in ((token.id, token.logprob), *token.top[:num_top])
    }


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float | None) -> Json:
    return {
        "token": token_text(tokenizer, token_id),
        "logprob": _number(logprob),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }


def _number(logprob: float | None) -> float:
    assert logprob is not None  # it was asked for
    return max(logprob, LEAST)
