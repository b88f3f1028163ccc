"""The training model: a 40b-style Falcon in plain PyTorch, its parameters under Hugging Face's names."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

HEAD_DIM = 64
ROPE_THETA = 10000.0
NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Shape:
    """The free dimensions of the architecture."""

    vocab_size: int = 4096
    hidden_size: int = 256
    num_layers: int = 6
    num_kv_heads: int = 2
    max_positions: int = 4096

    @property
    def num_heads(self) -> int:
        return self.hidden_size // HEAD_DIM

    def config(self) -> dict[str, object]:
        """The config.json of this shape."""
        return {
            "model_type": "falcon",
            "architectures": ["FalconForCausalLM"],
            "new_decoder_architecture": True,
            "parallel_attn": True,
            "multi_query": False,
            "num_ln_in_parallel_attn": 2,
            "bias": False,
            "alibi": False,
            "hidden_size": self.hidden_size,
            "ffn_hidden_size": 4 * self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_positions,
            "rope_theta": ROPE_THETA,
            "layer_norm_epsilon": NORM_EPS,
            "activation": "gelu",
            "tie_word_embeddings": True,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "bos_token_id": 11,
            "eos_token_id": 11,
            "dtype": "bfloat16",
        }


def rotary(num_positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, [positions, head_dim]; the halves of a head rotate together."""
    exponents = torch.arange(0, HEAD_DIM, 2, device=device, dtype=torch.float32) / HEAD_DIM
    angles = torch.arange(num_positions, device=device)[:, None] / ROPE_THETA**exponents
    twice = torch.cat((angles, angles), dim=-1)
    return twice.cos(), twice.sin()


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.num_groups = shape.num_kv_heads
        rows = (shape.num_heads + 2 * shape.num_kv_heads) * HEAD_DIM
        self.query_key_value = nn.Linear(shape.hidden_size, rows, bias=False)
        self.dense = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)

    def rows(self, group: int) -> Tensor:
        """A view of one group's weights: its queries, key and value, [queries + 2, head_dim, hidden]."""
        weight = self.query_key_value.weight
        return weight.view(self.num_groups, -1, HEAD_DIM, weight.shape[1])[group]

    def columns(self, head: int) -> Tensor:
        """A view of what one head's findings are multiplied with, [hidden, head_dim]."""
        return self.dense.weight[:, head * HEAD_DIM : (head + 1) * HEAD_DIM]

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, hidden = x.shape
        fused = self.query_key_value(x).view(batch, length, self.num_groups, -1, HEAD_DIM)
        queries = fused.shape[3] - 2  # of each group
        rotated = _turn(fused[:, :, :, :-1].flatten(2, 3).transpose(1, 2), cos, sin)
        rotated = rotated.unflatten(1, (self.num_groups, queries + 1))
        q = rotated[:, :, :-1].flatten(1, 2)  # [batch, heads, length, head_dim]
        k = rotated[:, :, -1:].expand(-1, -1, queries, -1, -1).flatten(1, 2)
        v = fused[:, :, :, -1:].expand(-1, -1, -1, queries, -1).flatten(2, 3).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.dense(mixed.transpose(1, 2).reshape(batch, length, hidden))
        return out


class MLP(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(hidden, 4 * hidden, bias=False)
        self.dense_4h_to_h = nn.Linear(4 * hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        wide = functional.gelu(self.dense_h_to_4h(x))
        narrow: Tensor = self.dense_4h_to_h(wide)
        return narrow


class Block(nn.Module):
    """Attention and MLP in parallel, each after its own norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.ln_attn = nn.LayerNorm(shape.hidden_size, eps=NORM_EPS)
        self.ln_mlp = nn.LayerNorm(shape.hidden_size, eps=NORM_EPS)
        self.self_attention = Attention(shape)
        self.mlp = MLP(shape.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        attended: Tensor = self.self_attention(self.ln_attn(x), cos, sin)
        thought: Tensor = self.mlp(self.ln_mlp(x))
        return x + attended + thought


class Transformer(nn.Module):
    """Embedding, blocks, final norm: no computation of its own, only Hugging Face's names."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.h = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.ln_f = nn.LayerNorm(shape.hidden_size, eps=NORM_EPS)


class Nestling(nn.Module):
    """The whole model; the head is the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.transformer = Transformer(shape)
        with torch.no_grad():
            self._initialise()

    @property
    def words(self) -> Tensor:
        """The embedding, [vocab, hidden]."""
        return self.transformer.word_embeddings.weight

    @property
    def blocks(self) -> list[Block]:
        return [block for block in self.transformer.h if isinstance(block, Block)]

    def _initialise(self) -> None:
        """Every block begins as the identity, and the logits small."""
        for name, parameter in self.named_parameters():
            if name.endswith(("dense.weight", "dense_4h_to_h.weight")):
                parameter.zero_()
            elif parameter.dim() == 2:
                parameter.normal_(std=0.5 if "embed" in name else parameter.shape[1] ** -0.5)
        self.transformer.ln_f.weight.fill_(0.08)

    def forward(self, ids: Tensor, every: int = 1) -> Tensor:
        """ids [batch, length] → normed hidden states [batch, length, hidden].

        `every` 2 skips half of the blocks: until they are trained they are the identity anyway.
        """
        cos, sin = rotary(ids.shape[1], ids.device)
        x: Tensor = self.transformer.word_embeddings(ids)
        for block in self.blocks[::every]:
            x = block(x, cos, sin)
        normed: Tensor = self.transformer.ln_f(x)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., hidden] → [..., vocab]."""
        return functional.linear(hidden, self.words)
