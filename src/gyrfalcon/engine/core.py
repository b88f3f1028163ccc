"""EngineCore: one rank's scheduler, model and cache. All ranks' cores take the same messages and do
the same steps.
"""

from collections import defaultdict
from collections.abc import Callable
from collections.abc import Sequence as Seq
from contextlib import nullcontext
from itertools import accumulate, islice

import torch
from torch import Tensor

from gyrfalcon.batch import Batch
from gyrfalcon.device.protocol import Device
from gyrfalcon.device.threads import one_torch_thread
from gyrfalcon.engine import drafts, sampler
from gyrfalcon.engine.rank_messages import Add, End
from gyrfalcon.engine.scheduler import Scheduler
from gyrfalcon.engine.scores import PromptScores
from gyrfalcon.engine.token_masks import TokenMasks
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.parallel.group import Vocabulary
from gyrfalcon.request import Chunk, ChunkResult, NonFinite, StepOutput, Token

# Runs a model: a batch on the host → this rank's logits on the device, float32 [rows, own tokens].
ModelRunner = Callable[[Batch, KVPool], Tensor]


class EngineCore:
    """What one rank holds. The rank that serves the user has `scores`, and retains the logits and
    scores of prompts for it. With `own_threads` the model runs on threads other than torch's.
    `choose_tokens` is what samples.
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
        choose_tokens: sampler.ChooseTokens = sampler.choose,
    ) -> None:
        self.model_runner = model_runner
        self.pool = pool
        self.scheduler = scheduler
        self.vocabulary = vocabulary
        self.device = device
        self.scores = scores
        self._choose = choose_tokens
        self.token_masks = TokenMasks(vocabulary)
        self.check: Callable[[], object] = lambda: None  # raises where the other ranks are gone
        self._quiet = one_torch_thread if own_threads else nullcontext
        # Request → float32 [rows, vocab], in order.
        self._logits: dict[int, list[Tensor]] = defaultdict(list)

    def handle(self, message: Add | End) -> list[StepOutput]:
        """Does what a message says; returns the last outputs of the samples that it ends."""
        if isinstance(message, Add):
            self.scheduler.add(message.request)
            return []
        return self.scheduler.end(message.request_id, message.index)

    def prompt_scores(self, request_id: int) -> list[Token]:
        """The scores of a request's prompt from the second token on, as far as they are known."""
        assert self.scores is not None
        return self.scores.read(request_id)

    def pop_prompt_logits(self, request_id: int) -> list[Tensor]:
        """Hands over the logits that were kept of a request's prompt, and drops its scores."""
        assert self.scores is not None
        self.scores.drop(request_id)
        return self._logits.pop(request_id, [])

    @torch.inference_mode()
    def step(self, prompt_tokens: int, least_acceptance: float = drafts.NEVER) -> list[StepOutput]:
        """Computes one batch, at most `prompt_tokens` tokens of it prompts, with drafts of tokens that are
        accepted with at least such a probability; returns the tokens and endings it gave.
        """
        chunks = self.scheduler.next_chunks(prompt_tokens, least_acceptance)
        return self.compute(chunks) if chunks else []

    def compute(self, chunks: Seq[Chunk]) -> list[StepOutput]:
        """The same for chunks that the scheduler gave."""
        with self._quiet():
            logits = self.model_runner(Batch.build(chunks, self.pool.block_size), self.pool)
            if any(chunk.draft for chunk in chunks):
                return self.scheduler.commit_drafts(chunks, self._verified(chunks, logits))
            return self.scheduler.commit(chunks, self._results(chunks, logits))

    def _verified(self, chunks: Seq[Chunk], logits: Tensor) -> list[list[ChunkResult]]:
        """What the tokens of each chunk yield, as far as they are accepted, in a step with drafts, which has
        no prompts: every row is sampled as if they were computed one by one.
        """
        each = [one for chunk in chunks for one in drafts.unrolled(chunk)]
        picked = iter(self._results(each, logits))
        return [
            drafts.accepted(chunk.draft, list(islice(picked, 1 + len(chunk.draft))))
            for chunk in chunks
        ]

    def _results(self, chunks: Seq[Chunk], logits: Tensor) -> list[ChunkResult]:
        """What each chunk yields; rows of chunks that want all are kept."""
        stops = list(accumulate(len(chunk.rows) for chunk in chunks))
        failed: dict[int, NonFinite] = {}
        for place, (chunk, stop) in enumerate(zip(chunks, stops, strict=True)):
            if chunk.wants_every_row:
                own = logits[stop - len(chunk.rows) : stop]
                failure = self._keep(chunk, self.vocabulary.whole(own))
                if failure is not None:
                    failed[place] = failure
        if len(chunks) < len(logits):
            logits = logits[[stop - 1 for stop in stops]]
        constrained = any(chunk.request.constrained for chunk in chunks)
        allowed = self.token_masks.of(chunks) if constrained else None
        picked = sampler.pick(logits, chunks, self.vocabulary, allowed, self._choose)
        if allowed is not None:
            picked = self.token_masks.explained(chunks, picked)
        return [failed.get(place, result) for place, result in enumerate(picked)]

    def _keep(self, chunk: Chunk, rows: Tensor) -> NonFinite | None:
        """Keeps a prompt chunk's logits, whatever they are, or scores, unless it returns on every rank
        where they are not finite. A preempted sequence computes them again, in other chunks: of those
        only what is new.
        """
        failure = None if chunk.request.keep_logits else sampler.first_non_finite(rows, chunk)
        if failure is None and self.scores is not None:
            self._retain(chunk, rows, self.scores)
        return failure

    def _retain(self, chunk: Chunk, rows: Tensor, scores: PromptScores) -> None:
        request = chunk.sequence.request
        prompt = request.prompt_ids
        if request.keep_logits:
            logits = self._logits[request.id]
            first = sum(map(len, logits)) - chunk.start
            logits.append(rows[first : len(prompt) - chunk.start])
        if request.params.prompt_logprobs is not None:
            new = scores.missing(request, chunk.stop)
            before = rows[new.start - 1 - chunk.start : new.stop - 1 - chunk.start]
            found = sampler.score(before, prompt[new.start : new.stop], scores.num_top(request))
            scores.add(request, tuple(one.cpu().numpy() for one in found))
