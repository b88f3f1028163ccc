"""TextStream: the tokens of one sample turned into text that may be shown, and the stop strings in
it.
"""

from gyrfalcon.detokenizer import Detokenizer, StopFinder
from gyrfalcon.request import Completion, FinishReason, Piece, Request, Token
from gyrfalcon.tokenizer import Tokenizer


class TextStream:
    """One sample of a request as its caller sees it. Without a tokenizer there are ids only and no
    text.
    """

    def __init__(self, request: Request, index: int, tokenizer: Tokenizer | None) -> None:
        self.request = request
        self.index = index
        self.tokens: list[Token] = []
        self.finish_reason: FinishReason | None = None
        self._text: list[str] = []
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer)
        self._stops = StopFinder(request.params.stop_strings)

    def push(self, token: Token | None, reason: FinishReason | None) -> Piece:
        """Takes the sample's next token and, with its last, why it ended; a stop string ends it
        too.
        """
        text = ""
        if token is not None:
            self.tokens.append(token)
            text, stopped = self._stops.push(self._decoded(token, reason))
            reason = FinishReason.STOP if stopped else reason
        if reason is not None:
            text += self._rest()
        self.finish_reason = reason
        self._text.append(text)
        return Piece(self.request.id, self.index, text, token, reason)

    def completion(self) -> Completion:
        """The whole sample, once it has ended."""
        assert self.finish_reason is not None
        wants_logprobs = self.request.params.logprobs is not None
        return Completion(
            index=self.index,
            output_ids=tuple(token.id for token in self.tokens),
            text="".join(self._text),
            finish_reason=self.finish_reason,
            logprobs=tuple(self.tokens) if wants_logprobs else None,
        )

    def _decoded(self, token: Token, reason: FinishReason | None) -> str:
        """The token's text; the token that ends a sample by its id has none."""
        if self._detokenizer is None or reason is FinishReason.STOP:
            return ""
        return self._detokenizer.push(token.id)

    def _rest(self) -> str:
        """What was held back when nothing follows: half a character, or the beginning of a stop
        string.
        """
        if self._detokenizer is None:
            return ""
        text, _ = self._stops.push(self._detokenizer.flush())
        return text + self._stops.flush()
