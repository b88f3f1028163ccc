"""What a step computes, in the numbers that its time depends on; and what predicts that time. No torch, no
model, no device.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol


class StepLoad(NamedTuple):
    """One step of one replica."""

    prompt_tokens: int  # of prompts that are prefilled
    decoding: int  # sequences that decode one token each
    context_tokens: int  # keys read: the sum of its sequences' contexts, new tokens included
    attended: int  # the sum over the new tokens of the keys that each attends to, itself included

    @property
    def tokens(self) -> int:
        """The tokens that the step computes."""
        return self.prompt_tokens + self.decoding


class StepTimes(Protocol):
    """Predicts how long steps take."""

    def seconds(self, load: StepLoad) -> float:
        """Seconds from the start of a step to the start of the next one."""
        ...


def decoding_load(num_sequences: int, context_tokens: int) -> StepLoad:
    """A step that only decodes; `context_tokens`: of all its sequences, their new tokens included."""
    return StepLoad(0, num_sequences, context_tokens, context_tokens)


def load_of(prompts: Iterable[range], contexts: Iterable[int] = ()) -> StepLoad:
    """A step that computes these positions of prompts, and one token of each sequence that decodes, whose
    `contexts` include it.
    """
    chunks, decoding = list(prompts), list(contexts)
    read = sum(chunk.stop for chunk in chunks) + sum(decoding)
    attended = sum(_pairs(chunk) for chunk in chunks) + sum(decoding)
    return StepLoad(sum(map(len, chunks)), len(decoding), read, attended)


def _pairs(chunk: range) -> int:
    """Pairs of a token in the chunk and one that it attends to: itself and all before it."""
    return (chunk.start + 1 + chunk.stop) * len(chunk) // 2
