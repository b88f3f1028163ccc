"""Turns the ids of a running sample into text that can be shown: whole characters, and never part
of a stop string.
"""

import codecs
from collections.abc import Sequence
from dataclasses import replace

from gyrfalcon.errors import GyrfalconError, RequestError
from gyrfalcon.request import Completion, Delta, FinishReason, Request, Token
from gyrfalcon.text.tokenizer import Tokenizer

Why = str | GyrfalconError | None  # a sample ended, where its text did not
HALF_PAIRS = range(0xD800, 0xE000)  # halves of surrogate pairs, which never occur in decoded text


class TextStream:
    """One sample of a request as its caller sees it. Without a tokenizer there are only ids, no
    text. `stops` are those of the request, made beforehand for all of its samples.
    """

    def __init__(
        self,
        request: Request,
        index: int,
        tokenizer: Tokenizer | None,
        stops: "StopStrings | None" = None,
    ) -> None:
        self.request = request
        self.index = index
        self.tokens: list[Token] = []
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None
        self.failure: GyrfalconError | None = None
        self._text: list[str] = []
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer)
        self._marks = stops or StopStrings(request.params.stop_strings, tokenizer)
        self._stops = StopFinder(self._marks.tables)

    def push(self, token: Token | None, reason: FinishReason | None, why: Why = None) -> Delta:
        """Takes the sample's next token and, with its last, the finish reason and the error it may
        have; a stop string ends it, too.
        """
        text = ""
        if token is not None:
            self.tokens.append(token)
            text = self._decoded(token, reason)
            if self._marks.tables:
                text, reason = self._before_stop(text, reason)
        if reason is not None:
            rest, reason = self._rest(reason)
            text += rest
        if self._marks.hidden:
            text = text.translate(self._marks.hidden)
        self.finish_reason = reason
        self._text.append(text)
        delta = Delta(self.request.id, self.index, text, token, reason)
        return delta if why is None else self._with_error(delta, why)

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
            failure=self.failure,
        )

    def _with_error(self, delta: Delta, why: str | GyrfalconError) -> Delta:
        """The sample's last delta, where it failed or was ended."""
        self.error = str(why)
        self.failure = why if isinstance(why, GyrfalconError) else None
        return replace(delta, error=self.error, failure=self.failure)

    def _before_stop(
        self, text: str, reason: FinishReason | None
    ) -> tuple[str, FinishReason | None]:
        """The text that can be shown, and why the sample ends. No stop string counts before min_tokens."""
        may_stop = len(self.tokens) > self.request.params.min_tokens
        shown, stopped = self._stops.push(text, may_stop)
        return shown, FinishReason.STOP if stopped else reason

    def _decoded(self, token: Token, reason: FinishReason | None) -> str:
        """The token's text; the token that ends a sample by its id has none."""
        if token.id in self._marks.letters:
            return self._marks.letters[token.id]
        if self._detokenizer is None or reason is FinishReason.STOP:
            return ""
        return self._detokenizer.push(token.id)

    def _rest(self, reason: FinishReason) -> tuple[str, FinishReason]:
        """The text held back, when nothing follows: half a character, or the beginning of a stop
        string. And why the sample ended: half a character may complete a stop string.
        """
        if self._detokenizer is None:
            return "", reason
        text, stopped = self._before_stop(self._detokenizer.flush(), None)
        if stopped is not None and reason is FinishReason.LENGTH:
            reason = stopped
        return text + self._stops.flush(), reason


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


class StopStrings:
    """A request's stop strings, prepared for finding them: their tables, one for each.

    Special tokens in them, such as the first part of "<|im_end|>\\n", never appear in text: while stop
    strings are matched, each is represented by a character that no text contains, which is hidden
    afterwards.
    """

    def __init__(self, stops: Sequence[str], tokenizer: Tokenizer | None = None) -> None:
        if not all(stops):
            raise RequestError("stop strings with text", "an empty one", "leave it out")
        texts = tokenizer.special_in(stops) if tokenizer is not None else {}
        self.letters = {i: chr(half) for i, half in zip(texts, HALF_PAIRS, strict=False)}
        self.hidden = dict.fromkeys(map(ord, self.letters.values()))
        longest_first = sorted(self.letters, key=lambda i: -len(texts[i]))
        with_letters: list[str] = []
        for stop in stops:
            lettered = stop
            for i in longest_first:
                lettered = lettered.replace(texts[i], self.letters[i])
            if lettered != stop:
                with_letters.append(lettered)
        hidden = frozenset(self.letters.values())
        self.tables = [StopTable(stop, hidden) for stop in (*stops, *with_letters)]


class StopTable:
    """What tells how much of a stop string a text ends with (Knuth, Morris and Pratt 1977). The string
    skips `hidden` characters that are not in it, since no text shows them.
    """

    def __init__(self, stop: str, hidden: frozenset[str] = frozenset()) -> None:
        self.stop = stop
        self.hidden = hidden.difference(stop)
        # [i]: the longest proper end of stop[: i + 1] that is also its beginning
        self.borders = [0]
        for letter in stop[1:]:
            self.borders.append(self.longer(self.borders[-1], letter))

    def longer(self, matched: int, letter: str) -> int:
        """How much of it the text ends with after another letter; not all of it before."""
        while matched and self.stop[matched] != letter:
            matched = self.borders[matched - 1]
        return matched + (self.stop[matched] == letter)


class StopFinder:
    """Finds stop strings in a text that arrives in parts; the first to be complete ends the text.
    Of several that end at the same character the longest counts. How the text is split never
    matters.
    """

    def __init__(self, tables: Sequence[StopTable]) -> None:
        self._matches = list(map(_Match, tables))
        self._held = ""
        self._stopped = False

    def push(self, text: str, may_stop: bool = True) -> tuple[str, bool]:
        """The text that can be shown now, and whether a stop string was found: nothing follows one. One
        whose last character comes where none `may_stop` is text as any other.
        """
        if not self._matches:
            return text, False
        if self._stopped:
            return "", True
        seen = self._held + text
        for end in range(len(self._held) + 1, len(seen) + 1):
            found = [match for match in self._matches if match.advance(seen[end - 1])]
            for match in found if not may_stop else ():
                match.go_on()
            if found and may_stop:
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
    """How much of one stop string the text so far ends with."""

    def __init__(self, table: StopTable) -> None:
        self.table = table
        self.len = 0

    def advance(self, letter: str) -> bool:
        """Takes the next character of the text; returns whether it completes the stop string."""
        if letter in self.table.hidden:
            return False
        self.len = self.table.longer(self.len, letter)
        return self.len == len(self.table.stop)

    def go_on(self) -> None:
        """The stop string that was just completed does not count."""
        self.len = self.table.borders[-1]

    def begin(self, seen: str, end: int) -> int:
        """Where in seen[:end] the current match begins."""
        if not self.table.hidden:
            return end - self.len
        missing, begin = self.len, end
        while missing:
            begin -= 1
            missing -= seen[begin] not in self.table.hidden
        return begin
