"""ModelConfig: the mathematics of one model in our words. Its architecture reads it from a config.json.

Knows numbers and names only: no tensors, no files, no ranks.
"""

from dataclasses import asdict, dataclass

ROPE_KINDS = ("default", "linear", "dynamic", "yarn", "llama3")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding and its scaling; fields that `kind` does not use hold their neutral value."""

    theta: float
    kind: str  # one of ROPE_KINDS
    factor: float = 1.0
    original_max_positions: int = 0  # positions the model was trained on
    attention_factor: float = 1.0  # yarn: multiplies cos and sin
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: correction range rounded to whole dimensions
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 1.0  # llama3


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model. Shapes are whole-model shapes; nothing here depends on the number of ranks."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    ffn_size: int
    vocab_size: int
    max_positions: int  # the longest sequence the positions are made for
    parallel: bool  # attention and MLP read the same input (all but rw)
    num_norms: int  # norms of one block: 2 for 40b, 180B and rw, 1 for 7b and 11B
    bias: bool  # of the linear layers; norms always have one
    tied: bool  # the head is the embedding, unless the checkpoint stores a different one
    activation: str  # one of ops.reference.ACTIVATIONS
    norm_eps: float
    rope: RopeConfig | None  # None: ALiBi
    architecture: str = "falcon"  # a key of model.architectures.ARCHITECTURES

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def queries_per_kv_head(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def qkv_rows(self) -> int:
        """Rows of the fused query_key_value weight: per KV head its queries, one k and one v."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    def facts(self) -> dict[str, object]:
        """Its fields as result and reference files hold them, which name no architecture for Falcon."""
        facts = asdict(self)
        if self.architecture == "falcon":
            del facts["architecture"]
        return facts
