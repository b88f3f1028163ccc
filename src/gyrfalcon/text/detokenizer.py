"""Turns the ids of a running sample into text that can be shown: whole characters, and never part
of a stop string.
"""

import codecs
from collections.abc import Collection, Sequence

from gyrfalcon.errors import RequestError
from gyrfalcon.request import Completion, Delta, FinishReason, Request, Token
from gyrfalcon.text.tokenizer import Tokenizer

HALF_PAIRS = range(0xD800, 0xE000)  # halves of surrogate pairs, which never occur in decoded text


class TextStream:
    """One sample of a request as its caller sees it. Without a tokenizer there are only ids, no
    text.
    """

    def __init__(self, request: Request, index: int, tokenizer: Tokenizer | None) -> None:
        self.request = request
        self.index = index
        self.tokens: list[Token] = []
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None
        self._text: list[str] = []
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer)
        stops = request.params.stop_strings
        self._marks = StopMarks(stops, tokenizer)
        self._stops = StopFinder((*stops, *self._marks.stops), self._marks.letters.values())

    def push(
        self, token: Token | None, reason: FinishReason | None, error: str | None = None
    ) -> Delta:
        """Takes the sample's next token and, with its last, the finish reason and the error it may
        have; a stop string ends it, too.
        """
        text = ""
        if token is not None:
            self.tokens.append(token)
            text, stopped = self._stops.push(self._decoded(token, reason))
            reason = FinishReason.STOP if stopped else reason
        if reason is not None:
            text += self._rest()
        if self._marks.hidden:
            text = text.translate(self._marks.hidden)
        self.finish_reason, self.error = reason, error
        self._text.append(text)
        return Delta(self.request.id, self.index, text, token, reason, error)

    def completion(self) -> Completion:
        """The whole sample, after its end."""
        assert self.finish_reason is not None
        wants_logprobs = self.request.params.logprobs is not None
        return Completion(
            index=self.index,
            output_ids=tuple(token.id for token in self.tokens),
            text="".join(self._text),
            finish_reason=self.finish_reason,
            logprobs=tuple(self.tokens) if wants_logprobs else None,
            error=self.error,
        )

    def _decoded(self, token: Token, reason: FinishReason | None) -> str:
        """The token's text; the token that ends a sample by its id has none."""
        if token.id in self._marks.letters:
            return self._marks.letters[token.id]
        if self._detokenizer is None or reason is FinishReason.STOP:
            return ""
        return self._detokenizer.push(token.id)

    def _rest(self) -> str:
        """The text held back, when nothing follows: half a character, or the beginning of a stop
        string.
        """
        if self._detokenizer is None:
            return ""
        text, _ = self._stops.push(self._detokenizer.flush())
        return text + self._stops.flush()


class Detokenizer:
    """Decodes one sequence incrementally: all results joined, flush() included, are the text of all
    ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._text_bytes = tokenizer.text_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The characters that this id completes; none for special tokens."""
        return self._decoder.decode(self._text_bytes.get(token_id, b""))

    def flush(self) -> str:
        """The rest when no id follows: U+FFFD for half a character, else nothing."""
        return self._decoder.decode(b"", final=True)


class StopMarks:
    """Special tokens in stop strings, such as the first part of "<|im_end|>\\n". They never appear
    in text: while stop strings are matched, each is represented by a character that no text
    contains, which is hidden afterwards.
    """

    def __init__(self, stops: Sequence[str], tokenizer: Tokenizer | None) -> None:
        texts = tokenizer.special_in(stops) if tokenizer is not None else {}
        self.letters = {i: chr(half) for i, half in zip(texts, HALF_PAIRS, strict=False)}
        self.hidden = dict.fromkeys(map(ord, self.letters.values()))
        longest_first = sorted(self.letters, key=lambda i: -len(texts[i]))
        self.stops: list[str] = []  # the stop strings with such letters in them
        for stop in stops:
            lettered = stop
            for i in longest_first:
                lettered = lettered.replace(texts[i], self.letters[i])
            if lettered != stop:
                self.stops.append(lettered)


class StopFinder:
    """Finds stop strings in a text that arrives in parts; the first to be complete ends the text.
    Of several that end at the same character the longest counts. How the text is split never
    matters. A stop string skips `hidden` characters that are not in it, since no text shows them.
    """

    def __init__(self, stops: Sequence[str], hidden: Collection[str] = ()) -> None:
        if not all(stops):
            raise RequestError("stop strings with text", "an empty one", "leave it out")
        self._matches = [_Match(stop, frozenset(hidden).difference(stop)) for stop in stops]
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """The text that can be shown now, and whether a stop string was found: nothing follows one."""
        if not self._matches:
            return text, False
        if self._stopped:
            return "", True
        seen = self._held + text
        for end in range(len(self._held) + 1, len(seen) + 1):
            found = [match for match in self._matches if match.advance(seen[end - 1])]
            if found:
                self._held, self._stopped = "", True
                return seen[: min(match.begin(seen, end) for match in found)], True
        safe = min((match.begin(seen, len(seen)) for match in self._matches), default=len(seen))
        self._held = seen[safe:]
        return seen[:safe], False

    def flush(self) -> str:
        """The text held back, which is no stop string when nothing follows."""
        held, self._held = self._held, ""
        return held


class _Match:
    """How much of one stop string the text so far ends with (Knuth, Morris and Pratt 1977)."""

    def __init__(self, stop: str, hidden: Collection[str] = ()) -> None:
        self.stop = stop
        self.len = 0
        self._hidden = hidden
        # [i]: the longest proper end of stop[: i + 1] that is also its beginning
        self._borders = [0]
        for letter in stop[1:]:
            self._borders.append(self._longer(self._borders[-1], letter))

    def advance(self, letter: str) -> bool:
        """Takes the next character of the text; returns whether it completes the stop string."""
        if letter in self._hidden:
            return False
        self.len = self._longer(self.len, letter)
        return self.len == len(self.stop)

    def begin(self, seen: str, end: int) -> int:
        """Where in seen[:end] the current match begins."""
        if not self._hidden:
            return end - self.len
        missing, begin = self.len, end
        while missing:
            begin -= 1
            missing -= seen[begin] not in self._hidden
        return begin

    def _longer(self, matched: int, letter: str) -> int:
        while matched and self.stop[matched] != letter:
            matched = self._borders[matched - 1]
        return matched + (self.stop[matched] == letter)
