"""Checkpoints that write what we choose: every token has one successor, whatever came before it."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from transformers import FalconConfig, FalconForCausalLM


def make_scripted(folder: Path, vocab_size: int, *chains: Sequence[int]) -> Path:
    """Writes a model that, greedy, goes on from each token of a chain with the chain's next one.

    A token has one successor in all chains, so that what follows it is certain; a chain may end where
    it or another began.
    """
    followed = [token for chain in chains for token in chain[:-1]]
    assert len(set(followed)) == len(followed), "a token has two successors"
    config = FalconConfig(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        new_decoder_architecture=True,
        vocab_size=vocab_size,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = FalconForCausalLM(config)
    embedding, head = model.transformer.word_embeddings.weight, model.lm_head.weight
    with torch.no_grad():
        for parameter in model.transformer.h.parameters():
            parameter.zero_()  # blocks that add nothing: the head sees the last token alone
        embedding.normal_()
        head.zero_()
        for chain in chains:
            for token, following in pairwise(chain):
                head[following] += embedding[token]
    model.save_pretrained(folder)
    return folder
