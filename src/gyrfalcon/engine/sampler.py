"""Logits → tokens: a pure function of the logits, each sequence's tokens and parameters, and its
seed.

Every rank calls it on the same logits and gets the same tokens.
"""

import random
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from gyrfalcon.errors import NotFinite
from gyrfalcon.request import SamplingParams, Sequence, Token


def pick(logits: Tensor, sequences: Seq[Sequence]) -> list[Token]:
    """The next token of each sequence from its row of logits (float32 [sequences, vocab])."""
    found = torch.stack((logits.argmax(dim=-1), logits.isfinite().all(dim=-1)))
    greedy, finite = found.tolist()  # one wait for the device
    _check_finite(all(finite))
    return [
        _describe(row, _choose(row, sequence, likeliest), sequence.request.params)
        for row, sequence, likeliest in zip(logits, sequences, greedy, strict=True)
    ]


def score(logits: Tensor, token_ids: Seq[int], num_top: int) -> list[Token]:
    """Log-probabilities of given tokens from their rows of logits (float32 [tokens, vocab])."""
    _check_finite(bool(logits.isfinite().all()))
    logprobs = logits.double().log_softmax(dim=-1)
    own = logprobs.gather(1, torch.tensor([token_ids], device=logits.device).T)[:, 0].tolist()
    tops = _top(logprobs, num_top)
    return [Token(*one) for one in zip(token_ids, own, tops, strict=True)]


def _check_finite(finite: bool) -> None:
    if not finite:
        raise NotFinite("finite logits", "infinity or NaN", "use --dtype bf16 or fp32, or verify")


def _describe(logits: Tensor, token_id: int, params: SamplingParams) -> Token:
    asked = tuple(params.logprob_ids)
    if params.logprobs is None and not asked:
        return Token(token_id)
    logprobs = logits.double().log_softmax(dim=-1)
    return Token(
        token_id,
        float(logprobs[token_id]),
        _top(logprobs[None], params.logprobs or 0)[0],
        tuple((other, float(logprobs[other])) for other in asked),
    )


def _top(logprobs: Tensor, num_top: int) -> list[tuple[tuple[int, float], ...]]:
    """For each row [rows, vocab] the likeliest token ids with their log-probabilities."""
    values, ids = logprobs.topk(min(num_top, logprobs.shape[1]))
    return [
        tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)
    ]


def _choose(logits: Tensor, sequence: Sequence, likeliest: int) -> int:
    params = sequence.request.params
    if _changes_logits(params):
        logits = _penalised(logits.clone(), sequence)
        likeliest = int(logits.argmax())
    if params.temperature == 0:
        return likeliest
    return _draw(logits, params, _chance(sequence))


def _chance(sequence: Sequence) -> float:
    """A uniform number in [0, 1) that depends on the seed, the sample and the place in the output,
    nothing else.
    """
    place = len(sequence.tokens) - sequence.prompt_len
    return random.Random(f"{sequence.request.seed}/{sequence.index}/{place}").random()


def _changes_logits(params: SamplingParams) -> bool:
    penalties = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty - 1)
    return bool(params.logit_bias) or any(penalties)


def _penalised(logits: Tensor, sequence: Sequence) -> Tensor:
    """Bias, then repetition over prompt and output, then presence and frequency over the output; in
    place.
    """
    params = sequence.request.params
    for token_id, bias in params.logit_bias.items():
        logits[token_id] += bias
    seen = torch.tensor(sequence.tokens, device=logits.device).unique()
    scores = logits[seen]
    penalty = params.repetition_penalty
    logits[seen] = torch.where(scores > 0, scores / penalty, scores * penalty)
    if sequence.output_ids:
        out, counts = torch.tensor(sequence.output_ids, device=logits.device).unique(
            return_counts=True
        )
        logits[out] -= params.presence_penalty + params.frequency_penalty * counts
    return logits


def _draw(logits: Tensor, params: SamplingParams, chance: float) -> int:
    """The token at which the cumulative probability of the kept tokens, likeliest first, passes
    `chance`.
    """
    scores, ids = logits.double().sort(descending=True, stable=True)
    scores = (scores - scores[0]) / params.temperature  # at most 0: no temperature overflows
    if params.top_k:
        scores = scores[: params.top_k]
    probabilities = scores.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # the mass of the likelier tokens
    kept = (before < params.top_p) & (probabilities >= params.min_p * probabilities[0])
    mass = probabilities.masked_fill(~kept, 0.0).cumsum(dim=-1)
    place = int(torch.searchsorted(mass, chance * mass[-1], right=True))
    return int(ids[min(place, int(kept.nonzero()[-1]))])
