"""A request on its way through an engine: its samples' texts, what was kept of its prompt, its times."""

from collections import deque
from dataclasses import dataclass, field, replace

from torch import Tensor

from gyrfalcon.request import Delta, Request, RequestOutput, StepOutput, Token
from gyrfalcon.text.detokenizer import TextStream


@dataclass(slots=True)
class Live:
    """A request that has not ended."""

    request: Request
    prompt: str | None
    streams: list[TextStream]
    unread: deque[Delta]  # what its caller has not seen; generate(), which sees none, keeps none
    timeout: float | None = None  # seconds
    queued_at: float = 0.0  # seconds of rank 0's clock
    prompt_scores: list[Token] = field(default_factory=list)
    prompt_logits: list[Tensor] = field(default_factory=list)
    admitted_at: dict[int, float] = field(default_factory=dict)  # of samples, by the same clock
    num_cached_tokens: int = 0  # of its first sample, as is what follows
    queued_seconds: float = 0.0
    num_preemptions: int = 0  # of all its samples
    num_accepted_tokens: int = 0  # of all its samples
    num_unfinished: int = field(init=False)
    owes_scores: bool = field(init=False)  # of the prompt, with the first delta of its first sample

    def __post_init__(self) -> None:
        self.num_unfinished = len(self.streams)
        self.owes_scores = self.request.params.prompt_logprobs is not None

    def scored(self, delta: Delta, scores: list[Token]) -> Delta:
        """The first delta of the first sample, with the scores of the prompt from its second token on."""
        self.owes_scores = False
        self.prompt_scores = scores
        return replace(delta, prompt_logprobs=self._whole(scores))

    def ended(self, delta: Delta, output: StepOutput, now: float) -> Delta:
        """A sample's last delta, with what it took to get there."""
        queued_seconds = self.admitted_at.get(output.index, now) - self.queued_at
        self.num_unfinished -= 1
        self.num_preemptions += output.num_preemptions
        self.num_accepted_tokens += output.num_accepted_tokens
        if output.index == 0:
            self.num_cached_tokens = output.num_cached_tokens
            self.queued_seconds = queued_seconds
        return replace(
            delta,
            num_cached_tokens=output.num_cached_tokens,
            queued_seconds=queued_seconds,
            num_preemptions=output.num_preemptions,
            num_accepted_tokens=output.num_accepted_tokens,
        )

    def output(self) -> RequestOutput:
        """The whole request, after its end."""
        scored = self.request.params.prompt_logprobs is not None
        return RequestOutput(
            prompt=self.prompt,
            prompt_ids=self.request.prompt_ids,
            completions=tuple(stream.completion() for stream in self.streams),
            prompt_logprobs=self._whole(self.prompt_scores) if scored else None,
            num_cached_tokens=self.num_cached_tokens,
            queued_seconds=self.queued_seconds,
            num_preemptions=self.num_preemptions,
            num_accepted_tokens=self.num_accepted_tokens,
        )

    def _whole(self, scores: list[Token]) -> tuple[Token | None, ...] | None:
        """The scores of the whole prompt; None where a sample that failed left fewer."""
        return (None, *scores) if len(scores) == len(self.request.prompt_ids) - 1 else None
