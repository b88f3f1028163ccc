"""The scores of prompts: each token's log-probability and the most likely tokens at its place. A rank
that serves a user holds them for requests under way and for cache blocks; which blocks have some, the
allocator knows on every rank.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gyrfalcon.request import SHARED_TOP, Request, Token

Entries = NDArray[np.void]  # of _entry(), one for each token
_NAMES = ("logprob", "rank", "top_ids", "top_logprobs")


@dataclass(slots=True)
class _Prompt:
    """A prompt under way. Nothing comes before its first token, which has no score."""

    request: Request
    entries: Entries  # [tokens]
    num_known: int = 1  # of the first tokens


class PromptScores:
    """Where scores are held: 72 bytes a token, 1,152 a block of 16. Without `reuse` blocks have none."""

    def __init__(
        self, num_blocks: int, block_size: int, vocab_size: int, reuse: bool = True
    ) -> None:
        self._vocab_size = vocab_size
        self._shared_top = min(SHARED_TOP, vocab_size) if reuse else 0
        # What no block with scores needs is never touched, and takes no memory.
        self._blocks = np.empty((num_blocks, block_size), _entry(self._shared_top))
        self._prompts: dict[int, _Prompt] = {}  # by the request's id

    def num_top(self, request: Request) -> int:
        """How many of the most likely tokens the scores of a prompt have, asked for or not."""
        asked = min(request.params.prompt_logprobs or 0, self._vocab_size)
        return max(asked, self._shared_top) if request.shares_scores else asked

    def missing(self, request: Request, stop: int) -> range:
        """The tokens of a prompt whose scores are new when those before `stop` have been computed."""
        return range(self._of(request).num_known, min(stop + 1, len(request.prompt_ids)))

    def add(self, request: Request, new: tuple[NDArray[np.generic], ...]) -> None:
        """The scores of the next tokens of a prompt: log-probabilities float64 [tokens], ranks
        [tokens], ids of the most likely tokens [tokens, num_top] and theirs float64 [tokens, num_top].
        """
        prompt = self._of(request)
        stop = prompt.num_known + len(new[0])
        entries = prompt.entries[prompt.num_known : stop]
        for name, values in zip(_NAMES, new, strict=True):
            entries[name] = values
        prompt.num_known = stop

    def load(self, request: Request, blocks: Seq[int], num_tokens: int) -> None:
        """Takes over what blocks hold of a prompt's first tokens."""
        prompt = self._of(request)
        if num_tokens > prompt.num_known:  # one that was preempted has its own
            new = slice(prompt.num_known, num_tokens)
            prompt.entries[new] = self._blocks[blocks].ravel()[new]
            prompt.num_known = num_tokens

    def store(self, request: Request, block: int, tokens: range) -> None:
        """Leaves the scores of some of a prompt's tokens with the block that begins with them."""
        self._blocks[block, : len(tokens)] = self._of(request).entries[tokens.start : tokens.stop]

    def drop(self, request_id: int) -> None:
        """Forgets the scores of a prompt; blocks keep theirs."""
        self._prompts.pop(request_id, None)

    def read(self, request_id: int) -> list[Token]:
        """The scores of a prompt from its second token on, as far as they are known."""
        prompt = self._prompts.get(request_id)
        if prompt is None:
            return []
        asked, known = prompt.request.params.prompt_logprobs, slice(1, prompt.num_known)
        columns = (prompt.entries[name][known].tolist() for name in _NAMES)
        return [
            Token(token_id, logprob, tuple(zip(ids, logprobs, strict=True))[:asked], rank=rank)
            for token_id, logprob, rank, ids, logprobs in zip(
                prompt.request.prompt_ids[known], *columns, strict=True
            )
        ]

    def _of(self, request: Request) -> _Prompt:
        prompt = self._prompts.get(request.id)
        if prompt is None:
            entries = np.empty(len(request.prompt_ids), _entry(self.num_top(request)))
            prompt = self._prompts[request.id] = _Prompt(request, entries)
        return prompt


def _entry(num_top: int) -> np.dtype[np.void]:
    kinds = (np.float64, np.int32, (np.int32, (num_top,)), (np.float64, (num_top,)))
    return np.dtype(list(zip(_NAMES, kinds, strict=True)))
