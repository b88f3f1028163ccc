"""Logits → tokens: a pure function of the logits, each sequence's tokens and parameters, and its
seed.

Every rank calls it with the logits of its own tokens of the vocabulary, and gets the same tokens. This
file defines which; native_sampler.py finds them faster on the host.
"""

import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from hashlib import blake2b

import torch
from torch import Tensor

from gyrfalcon.device.lookup import device_of, send
from gyrfalcon.engine.token_masks import AllowedTokens
from gyrfalcon.parallel.group import Vocabulary, stable_top_k
from gyrfalcon.request import (
    Chunk,
    ChunkResult,
    NoneAllowed,
    NonFinite,
    SamplingMode,
    SamplingParams,
    Token,
)

Choose = Callable[[Tensor], Tensor]  # greedy() in a vocabulary
ChooseSameMode = Callable[[Tensor, Seq[Chunk], Vocabulary, SamplingMode], Tensor]
ChooseTokens = Callable[[Tensor, Seq[Chunk], Vocabulary, AllowedTokens | None], Tensor]
ROWS_AT_ONCE = 32  # of a prompt, in float64: of 512 they would take 266 MB twice at 65,024 tokens
MOST_LIKELY = 1024  # tokens among which top_p mostly leaves those that may be drawn
NON_FINITE, NONE_ALLOWED = 1, -1  # of a row that gives no token; 0 of one that does
FAILURES: Mapping[int, type[NonFinite | NoneAllowed]] = {
    NON_FINITE: NonFinite,
    NONE_ALLOWED: NoneAllowed,
}


def choose_same_mode(
    own: Tensor, chunks: Seq[Chunk], vocabulary: Vocabulary, mode: SamplingMode
) -> Tensor:
    """choose() of rows that are all sampled in one mode."""
    if mode is SamplingMode.GREEDY:
        scores, ids = vocabulary.top_k(own, 1)
    else:
        scores, ids = _drawn(own, chunks, vocabulary, mode)
    top = scores[:, 0]
    failed = torch.full_like(ids[:, 0], NON_FINITE).masked_fill(top.isneginf(), NONE_ALLOWED)
    return torch.stack((ids[:, 0], failed.masked_fill(top.isfinite(), 0)))


def choose(
    own: Tensor,
    chunks: Seq[Chunk],
    vocabulary: Vocabulary,
    allowed: AllowedTokens | None = None,
    choose_same: ChooseSameMode = choose_same_mode,
) -> Tensor:
    """What pick() picks, on the device: int64 [2, chunks], the tokens, and which rows failed how, the
    same on every rank. Waits for the device only where logits are changed. `choose_same` is
    choose_same_mode(), or does the same.
    """
    # What is not finite shows as the most likely.
    own = own.nan_to_num(math.inf, math.inf, math.inf)
    own = own if allowed is None else allowed.applied_to(own)
    if any(chunk.request.has_min_tokens for chunk in chunks):
        own = _without_early_ends(own, chunks, vocabulary)
    modes = [one.request.sampling_mode if one.samples else SamplingMode.GREEDY for one in chunks]
    if len(set(modes)) == 1:
        return choose_same(own, chunks, vocabulary, modes[0])
    return _choose_mixed(own, chunks, vocabulary, modes, choose_same)


def _choose_mixed(
    own: Tensor,
    chunks: Seq[Chunk],
    vocabulary: Vocabulary,
    modes: Seq[SamplingMode],
    choose_same: ChooseSameMode,
) -> Tensor:
    found = torch.empty(2, len(chunks), dtype=torch.int64, device=own.device)
    for mode in dict.fromkeys(modes):
        rows = [row for row, other in enumerate(modes) if other is mode]
        at = send(torch.tensor(rows), own.device)
        found[:, at] = choose_same(own[at], [chunks[row] for row in rows], vocabulary, mode)
    return found


def pick(
    own: Tensor,
    chunks: Seq[Chunk],
    vocabulary: Vocabulary,
    allowed: AllowedTokens | None = None,
    choose_tokens: ChooseTokens = choose,
) -> list[ChunkResult]:
    """What each chunk yields from its last row of logits (this rank's, float32 [chunks, own tokens]):
    the next token of its sequence if it samples, one that is allowed. Log-probabilities are those of
    the model, among all tokens. `choose_tokens` is choose(), or does the same.
    """
    results = read(choose_tokens(own, chunks, vocabulary, allowed), chunks)
    asking = [
        (row, result.id)
        for row, (chunk, result) in enumerate(zip(chunks, results, strict=True))
        if chunk.request.wants_logprobs and isinstance(result, Token)
    ]
    if asking:
        rows = vocabulary.whole(own[[row for row, _ in asking]])
        for (row, token_id), logits in zip(asking, rows, strict=True):
            results[row] = _describe(logits, token_id, chunks[row].request.params)
    return results


def greedy(own: Tensor, vocabulary: Vocabulary) -> Tensor:
    """The same where every row takes its most likely token."""
    own = own.nan_to_num(math.inf, math.inf, math.inf)
    return choose_same_mode(own, (), vocabulary, SamplingMode.GREEDY)


def all_greedy(chunks: Seq[Chunk]) -> bool:
    """Whether greedy() chooses what choose() does."""
    return not any(
        chunk.request.has_min_tokens or chunk.request.sampling_mode is not SamplingMode.GREEDY
        for chunk in chunks
    )


def read(found: Tensor, chunks: Seq[Chunk]) -> list[ChunkResult]:
    """What choose() found for each chunk; waits for the device if it is there."""
    return [
        FAILURES[state](chunk.stop - 1) if state else Token(token_id) if chunk.samples else None
        for token_id, state, chunk in zip(*found.tolist(), chunks, strict=True)
    ]


def first_non_finite(logits: Tensor, chunk: Chunk) -> NonFinite | None:
    """Where NaN or infinity begins in the rows after each of a chunk's tokens."""
    wrong = (~logits.isfinite()).any(dim=-1).nonzero()[:1, 0].tolist()
    return NonFinite(chunk.start + wrong[0]) if wrong else None


def score(logits: Tensor, token_ids: Seq[int], num_top: int) -> tuple[Tensor, ...]:
    """Scores of given tokens from their rows of finite logits (float32 [tokens, vocab]):
    log-probabilities float64 [tokens], how many tokens are at least as likely int64 [tokens], the most
    likely tokens' ids int64 and theirs float64, both [tokens, num_top].
    """
    ids = torch.tensor([token_ids], dtype=torch.int64, device=logits.device).T
    parts = zip(logits.split(ROWS_AT_ONCE), ids.split(ROWS_AT_ONCE), strict=True)
    scores = [_score(rows, own, num_top) for rows, own in parts]
    return tuple(torch.cat(columns) for columns in zip(*scores, strict=True))


def _score(logits: Tensor, ids: Tensor, num_top: int) -> tuple[Tensor, ...]:
    """score() of a few rows and their ids [tokens, 1]."""
    logprobs = logits.double().log_softmax(dim=-1)
    own = logprobs.gather(1, ids)
    return own[:, 0], (logprobs >= own).sum(dim=-1), *_top(logprobs, num_top)


def _describe(logits: Tensor, token_id: int, params: SamplingParams) -> Token:
    logprobs = logits.double().log_softmax(dim=-1)
    [ids], [values] = (one.tolist() for one in _top(logprobs[None], params.logprobs or 0))
    return Token(
        token_id,
        float(logprobs[token_id]),
        tuple(zip(ids, values, strict=True)),
        tuple((other, float(logprobs[other])) for other in params.logprob_ids),
    )


def _top(logprobs: Tensor, num_top: int) -> tuple[Tensor, Tensor]:
    """For each row [rows, vocab] the ids of the most likely tokens and their log-probabilities, both
    [rows, num_top], of equals the lowest id first, as greedy decoding takes it: fewer are the first
    of more.
    """
    num_top = min(num_top, logprobs.shape[1])
    if num_top == 1:
        values, ids = stable_top_k(logprobs, 1)
        return ids, values
    # topk() returns any of equals in any order, but a stable sort of the whole row is slow.
    ids = logprobs.topk(num_top).indices.sort().values
    values, order = logprobs.gather(1, ids).sort(descending=True, stable=True)
    ids = ids.gather(1, order)
    if num_top:
        tied = (logprobs >= values[:, -1:]).sum(dim=-1) > num_top
        if tied.any():
            values[tied], ids[tied] = stable_top_k(logprobs[tied], num_top)
    return ids, values


def _without_early_ends(own: Tensor, chunks: Seq[Chunk], vocabulary: Vocabulary) -> Tensor:
    """-inf for what would end a sample that has fewer tokens than min_tokens, in place. What is not finite
    stays: it tells that the model failed.
    """
    first = sum(vocabulary.widths[: vocabulary.group.rank])
    places = [
        (row, end - first)
        for row, chunk in enumerate(chunks)
        if chunk.samples and not chunk.may_end
        for end in chunk.request.end_ids
        if 0 <= end - first < own.shape[1]
    ]
    if places:
        rows, columns = send(torch.tensor(places), own.device).T
        logits = own[rows, columns]
        own[rows, columns] = logits.masked_fill(logits.isfinite(), -math.inf)
    return own


def _drawn(
    own: Tensor, chunks: Seq[Chunk], vocabulary: Vocabulary, mode: SamplingMode
) -> tuple[Tensor, Tensor]:
    """Each row's most likely logits, at least one, and the token drawn: [chunks, 1]. Where top_k leaves few,
    only these travel between ranks.
    """
    if mode is not SamplingMode.TOP_K:
        return DRAWN[mode](changed(vocabulary.whole(own), chunks), chunks)
    params, chances = _asked(chunks)
    num = max(count_candidates(one, vocabulary.size) for one in params)
    scores, ids = vocabulary.top_k(own, num)
    return scores, ids.gather(1, _draw(scores, params, chances))


def _drawn_in_order(logits: Tensor, chunks: Seq[Chunk]) -> tuple[Tensor, Tensor]:
    """The same from the logits of all tokens, as in the next ones: where top_k leaves many, and greedily."""
    params, chances = _asked(chunks)
    num = max(count_candidates(one, logits.shape[1]) for one in params)
    scores, ids = stable_top_k(logits, num)
    return scores, ids.gather(1, _draw(scores, params, chances))


def _drawn_from_nucleus(logits: Tensor, chunks: Seq[Chunk]) -> tuple[Tensor, Tensor]:
    """Where top_p and min_p alone decide what is left. On the host a few of the tokens are selected, which
    is several times as fast as sorting all; those are sorted in the rows in which the few do not suffice.
    """
    num = MOST_LIKELY if device_of(logits.device).on_host else logits.shape[1]
    if num >= logits.shape[1]:
        return _drawn_in_order(logits, chunks)
    params, chances = _asked(chunks)
    scores, ids = stable_top_k(logits, num)
    mass = _mass(logits, params)[:, -1:]
    found = ids.gather(1, _draw(scores, params, chances, mass))
    short = (~_suffices(scores, params, mass)).nonzero()[:, 0]
    if len(short):
        _, found[short] = _drawn_in_order(logits[short], [chunks[row] for row in short.tolist()])
    return scores, found


def _drawn_from_all(logits: Tensor, chunks: Seq[Chunk]) -> tuple[Tensor, Tensor]:
    """Where nothing is left out."""
    params, chances = _asked(chunks)
    return logits.amax(dim=-1, keepdim=True), _draw_unordered(logits, params, chances)


DRAWN: Mapping[SamplingMode, Callable[[Tensor, Seq[Chunk]], tuple[Tensor, Tensor]]] = {
    SamplingMode.FULL_VOCAB: _drawn_in_order,
    SamplingMode.NUCLEUS: _drawn_from_nucleus,
    SamplingMode.UNFILTERED: _drawn_from_all,
}


def _asked(chunks: Seq[Chunk]) -> tuple[list[SamplingParams], list[float]]:
    """Each chunk's parameters, and its uniform draw."""
    return [chunk.request.params for chunk in chunks], list(map(uniform_draw, chunks))


def count_candidates(params: SamplingParams, vocab_size: int) -> int:
    """How many of the most likely tokens can be chosen, top_p and min_p aside."""
    return 1 if params.temperature == 0 else min(params.top_k or vocab_size, vocab_size)


def uniform_draw(chunk: Chunk) -> float:
    """A uniform number in [0, 1) that depends on the seed, the sample and the place in the output,
    nothing else.
    """
    sequence = chunk.sequence
    place = chunk.stop - sequence.prompt_len
    what = f"{sequence.request.seed}/{sequence.index}/{place}"
    digest = blake2b(what.encode(), digest_size=8, person=b"uniform draw").digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53  # as many bits as a float has


def changed(logits: Tensor, chunks: Seq[Chunk]) -> Tensor:
    """The rows after what their parameters change about them, in place."""
    for row, chunk in zip(logits, chunks, strict=True):
        if chunk.request.changes_logits and chunk.samples:
            _penalised(row, chunk)
    return logits


def _penalised(logits: Tensor, chunk: Chunk) -> Tensor:
    """Bias, then repetition over prompt and output, then presence and frequency over the output; in
    place.
    """
    params, tokens = chunk.request.params, chunk.sequence.tokens + chunk.draft
    for token_id, bias in params.logit_bias.items():
        logits[token_id] += bias
    seen = torch.tensor(tokens, device=logits.device).unique()
    scores = logits[seen]
    penalty = params.repetition_penalty
    logits[seen] = torch.where(scores > 0, scores / penalty, scores * penalty)
    output_ids = tokens[chunk.sequence.prompt_len :]
    if output_ids:
        out, counts = torch.tensor(output_ids, device=logits.device).unique(return_counts=True)
        logits[out] -= params.presence_penalty + params.frequency_penalty * counts
    return logits


def _draw(
    scores: Tensor, params: Seq[SamplingParams], chances: Seq[float], mass: Tensor | None = None
) -> Tensor:
    """For each row of scores (float32 [rows, candidates], most likely first) the place at which the
    cumulative probability of the candidates that are kept passes its chance: int64 [rows, 1]. `mass`: of
    more than the candidates, float64 [rows, 1], where the most likely weighs 1.
    """
    own = zip(params, chances, strict=True)
    settings = [
        (one.temperature or 1, count_candidates(one, scores.shape[1]), one.top_p, one.min_p, chance)
        for one, chance in own
    ]
    temperature, num_candidates, top_p, min_p, chance = _columns(settings, scores).unbind()
    weights = ((scores.double() - scores[:, :1]) / temperature).exp()  # at most 1: none overflows
    places = torch.arange(scores.shape[1], device=scores.device)
    weights = weights.masked_fill(places >= num_candidates, 0.0)
    total = weights.cumsum(dim=-1)  # adds one by one: zeros behind the last do not change a sum
    whole = total[:, -1:] if mass is None else mass
    kept = (total - weights < top_p * whole) & (weights >= min_p)
    of_kept = weights.masked_fill(~kept, 0.0).cumsum(dim=-1)
    found = torch.searchsorted(of_kept, chance * of_kept[:, -1:], right=True)
    last = (kept.sum(dim=-1, keepdim=True) - 1).clamp(min=0)  # none is kept of rows with NaN
    return found.minimum(last)


def _suffices(scores: Tensor, params: Seq[SamplingParams], mass: Tensor) -> Tensor:
    """Whether top_p or min_p leaves no token beyond these scores, which are the largest of their rows:
    bool [rows]; of all tokens `mass` is that of _draw().
    """
    settings = [(one.temperature, one.top_p, one.min_p) for one in params]
    temperature, top_p, min_p = _columns(settings, scores).unbind()
    weights = ((scores.double() - scores[:, :1]) / temperature).exp()
    total = weights.cumsum(dim=-1)[:, -1:]
    return ((total >= top_p * mass) | (weights[:, -1:] < min_p))[:, 0]


def _draw_unordered(logits: Tensor, params: Seq[SamplingParams], chances: Seq[float]) -> Tensor:
    """For each row of logits (float32 [rows, vocab]) the id at which the cumulative probability of all
    tokens passes its chance: int64 [rows, 1]. In the order of their ids: to sort them by their logits first
    takes several times as long.
    """
    mass = _mass(logits, params)
    chance = _columns([(one,) for one in chances], logits)[0]
    total = mass[:, -1:].contiguous()
    found = torch.searchsorted(mass, chance * total, right=True)
    last = torch.searchsorted(mass, total)  # of those with a weight
    return found.minimum(last).clamp(max=logits.shape[1] - 1)  # beyond it in rows with NaN


def _mass(logits: Tensor, params: Seq[SamplingParams]) -> Tensor:
    """Weights of all tokens, summed up in the order of their ids: float64 [rows, vocab]. The most likely
    one weighs 1.
    """
    temperature = _columns([(one.temperature,) for one in params], logits)[0]
    scores = logits.double() - logits.amax(dim=-1, keepdim=True)
    return (scores / temperature).exp().cumsum(dim=-1)


def _columns(settings: Seq[tuple[float, ...]], like: Tensor) -> Tensor:
    """Numbers for each row, by kind: float64 [kinds, rows, 1], on the device of another tensor."""
    return send(torch.tensor(settings, dtype=torch.float64), like.device).T[:, :, None]
