"""EngineCore: one rank's scheduler, model and cache. All ranks' cores take the same messages and do
the same steps.
"""

from collections import defaultdict
from collections.abc import Callable
from collections.abc import Sequence as Seq
from contextlib import nullcontext
from itertools import accumulate

import torch
from torch import Tensor

from gyrfalcon.batch import Batch
from gyrfalcon.device.protocol import Device
from gyrfalcon.device.threads import one_torch_thread
from gyrfalcon.engine import sampler
from gyrfalcon.engine.rank_messages import Add, End
from gyrfalcon.engine.scheduler import Scheduler
from gyrfalcon.engine.scores import PromptScores
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.parallel.group import Vocabulary
from gyrfalcon.request import Chunk, StepOutput, Token

# Runs a model: a batch on the host → this rank's logits on the device, float32 [rows, own tokens].
ModelRunner = Callable[[Batch, KVPool], Tensor]


class EngineCore:
    """What one rank holds. The rank that serves the user has `scores`, and retains the logits and
    scores of prompts for it. With `own_threads` the model runs on threads other than torch's.
    """

    def __init__(
        self,
        model_runner: ModelRunner,
        pool: KVPool,
        scheduler: Scheduler,
        vocabulary: Vocabulary,
        device: Device,
        scores: PromptScores | None,
        own_threads: bool = False,
    ) -> None:
        self.model_runner = model_runner
        self.pool = pool
        self.scheduler = scheduler
        self.vocabulary = vocabulary
        self.device = device
        self.scores = scores
        self._quiet = one_torch_thread if own_threads else nullcontext
        self._logits: dict[int, list[Tensor]] = defaultdict(
            list
        )  # request → float32 [rows, vocab], in order

    def handle(self, message: Add | End) -> list[StepOutput]:
        """Does what a message says; returns the last outputs of the samples that it ends."""
        if isinstance(message, Add):
            self.scheduler.add(message.request)
            return []
        return self.scheduler.end(message.request_id, message.index)

    def pop_prompt_logits(self, request_id: int) -> tuple[list[Tensor], list[Token]]:
        """Hands over what was kept of a request's prompt: logits after each token, scores from the
        second on.
        """
        assert self.scores is not None
        return self._logits.pop(request_id, []), self.scores.pop(request_id)

    @torch.inference_mode()
    def step(self, prompt_tokens: int) -> list[StepOutput]:
        """Computes one batch, at most `prompt_tokens` tokens of it prompts; returns the tokens and
        endings it gave.
        """
        chunks = self.scheduler.next_chunks(prompt_tokens)
        return self.compute(chunks) if chunks else []

    def compute(self, chunks: Seq[Chunk]) -> list[StepOutput]:
        """The same for chunks that the scheduler gave."""
        with self._quiet():
            logits = self.model_runner(Batch.build(chunks, self.pool.block_size), self.pool)
            return self.scheduler.commit(chunks, self._tokens(chunks, logits))

    def _tokens(self, chunks: Seq[Chunk], logits: Tensor) -> list[Token | None]:
        """A new token for each chunk that samples; rows of chunks that want all are kept."""
        stops = list(accumulate(len(chunk.rows) for chunk in chunks))
        for chunk, stop in zip(chunks, stops, strict=True):
            if chunk.wants_every_row:
                own = logits[stop - len(chunk.rows) : stop]
                self._keep(chunk, self.vocabulary.whole(own))
        sampling = [chunk for chunk in chunks if chunk.samples]
        if not sampling:
            return [None] * len(chunks)
        if len(sampling) < len(logits):
            last = [stop - 1 for chunk, stop in zip(chunks, stops, strict=True) if chunk.samples]
            logits = logits[last]
        picked = iter(sampler.pick(logits, sampling, self.vocabulary))
        return [next(picked) if chunk.samples else None for chunk in chunks]

    def _keep(self, chunk: Chunk, rows: Tensor) -> None:
        """Keeps a prompt chunk's logits or scores. A preempted sequence computes them again, in
        other chunks: of those only what is new.
        """
        if self.scores is None:
            return
        request = chunk.sequence.request
        prompt = request.prompt_ids
        if request.keep_logits:
            logits = self._logits[request.id]
            first = sum(map(len, logits)) - chunk.start
            logits.append(rows[first : len(prompt) - chunk.start])
        if request.params.prompt_logprobs is not None:
            new = self.scores.missing(request, chunk.stop)
            before = rows[new.start - 1 - chunk.start : new.stop - 1 - chunk.start]
            found = sampler.score(
                before, prompt[new.start : new.stop], self.scores.num_top(request)
            )
            self.scores.add(request, tuple(one.cpu().numpy() for one in found))
