"""Compares an engine with another's published log-probabilities and greedy tokens for a prompt.

The limits allow for half precision on either side: bf16 rounds a logit of 20 by up to 0.06. They
catch a model that computes something else, not one that rounds a little more.
"""

from dataclasses import dataclass

import torch

from gyrfalcon.engine.engine import Engine
from gyrfalcon.measure.precision.gate import Figure
from gyrfalcon.measure.published import TokenFigures

LIMITS = {  # of the difference in log-probability: its mean size, its largest, its mean
    "logprob_mean_error": 0.1,
    "logprob_max_error": 0.5,
    "nll_error": 0.03,
}
GREEDY = "greedy_agreement"
GREEDY_LIMIT = 0.9  # of the greedy tokens; each is compared after the published ones before it
ALL_LIMITS = {**LIMITS, GREEDY: GREEDY_LIMIT}
SENSE = {**dict.fromkeys(LIMITS, "<="), GREEDY: ">="}


@dataclass(frozen=True, slots=True)
class TokenCheck:
    """The figures, and the log-probabilities, token by token, that they are computed from."""

    figures: tuple[Figure, ...]
    ids: tuple[int, ...]  # prompt and output, from the prompt's second token on
    published: tuple[float, ...]
    ours: tuple[float, ...]


def check_tokens(engine: Engine, figures: TokenFigures) -> TokenCheck:
    """Scores the published tokens, the output one at a time as in decoding. Every rank has to call
    it.
    """
    ids = (*figures.prompt_ids, *figures.output_ids)
    given = torch.tensor([ids[:-1]])
    logits = engine.logits(given, single_steps=len(figures.output_ids) - 1)[0]
    logprobs = logits.double().log_softmax(dim=-1)
    ours = logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    published = (*figures.prompt_logprobs, *figures.output_logprobs)
    greedy = logits.argmax(dim=-1)[len(figures.prompt_ids) - 1 :]
    error = ours - torch.tensor(published, dtype=torch.float64)
    values = {
        "logprob_mean_error": float(error.abs().mean()),
        "logprob_max_error": float(error.abs().max()),
        "nll_error": abs(float(error.mean())),
    }
    agreement = float((greedy == torch.tensor(figures.output_ids)).double().mean())
    return TokenCheck(
        figures=(
            *(Figure.of(name, values[name], SENSE[name], limit) for name, limit in LIMITS.items()),
            Figure.of(GREEDY, agreement, SENSE[GREEDY], GREEDY_LIMIT),
        ),
        ids=ids[1:],
        published=published,
        ours=tuple(ours.tolist()),
    )
