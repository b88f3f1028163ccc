"""What sampler.choose() chooses, by the native kernel that draws a row's token: the same tokens, several
times as fast. On the host only.
"""

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from gyrfalcon.engine import sampler
from gyrfalcon.engine.token_masks import AllowedTokens
from gyrfalcon.ops.native import draw_tokens
from gyrfalcon.parallel.group import Vocabulary
from gyrfalcon.request import Chunk, RowDraw, SamplingMode

GREEDY = RowDraw(0.0, 1.0, 0.0, 0.0, 0)


def choose(
    own: Tensor,
    chunks: Seq[Chunk],
    vocabulary: Vocabulary,
    allowed: AllowedTokens | None = None,
) -> Tensor:
    """`sampler.choose`."""
    if vocabulary.group.size == 1 and allowed is None and not any(map(_changes_logits, chunks)):
        return draw_tokens(own, _row_draws(chunks), False)
    return sampler.choose(own, chunks, vocabulary, allowed, _choose_same_mode)


def _choose_same_mode(
    own: Tensor, chunks: Seq[Chunk], vocabulary: Vocabulary, mode: SamplingMode
) -> Tensor:
    """`sampler.choose_same_mode`. Ranks tell each other no more than there."""
    if vocabulary.group.size > 1 and mode is SamplingMode.GREEDY:
        return sampler.choose_same_mode(own, chunks, vocabulary, mode)
    if vocabulary.group.size == 1 or mode is not SamplingMode.TOP_K:
        logits = sampler.changed(vocabulary.whole(own), chunks)
        return draw_tokens(logits, _row_draws(chunks), True)
    num = max(sampler.count_candidates(one.request.params, vocabulary.size) for one in chunks)
    scores, ids = vocabulary.top_k(own, num)
    places, states = draw_tokens(scores, _row_draws(chunks), True)
    return torch.stack((ids.gather(1, places[:, None])[:, 0], states))


def _changes_logits(chunk: Chunk) -> bool:
    return chunk.request.changes_logits or chunk.request.has_min_tokens


def _row_draws(chunks: Seq[Chunk]) -> list[RowDraw]:
    """How each row's token is drawn; rows that sample nothing are looked at as greedy ones are."""
    draws = []
    for chunk in chunks:
        temperature, top_p, min_p, _, top_k = chunk.request.row_draw
        if chunk.samples and temperature:
            chance = sampler.uniform_draw(chunk)
            draws.append(RowDraw(temperature, top_p, min_p, chance, top_k))
        else:
            draws.append(GREEDY)
    return draws
