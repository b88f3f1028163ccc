"""What a command checks of its model before any weights are loaded, which may take minutes."""

from collections.abc import Sequence

from gyrfalcon.checkpoint.hub import resolve_model
from gyrfalcon.checkpoint.load import effective_quant
from gyrfalcon.checkpoint.source import Checkpoint, open_checkpoint
from gyrfalcon.checkpoint.tokenizer import has_tokenizer, no_tokenizer
from gyrfalcon.engine.build import longest_sequence
from gyrfalcon.engine.prompts import Asked, Longest, check
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.request import SamplingParams
from gyrfalcon.text.grammar import Grammars
from gyrfalcon.text.tokenizer import Tokenizer


def opened(config: EngineConfig, *, needs_tokenizer: bool = True) -> Checkpoint:
    """The model's checkpoint, of which headers are read; CheckpointError and UsageError where it does
    not go with the config, and where a tokenizer is needed and there is none.
    """
    checkpoint = open_checkpoint(resolve_model(config.model), config.adapter, config.dtype)
    longest_sequence(config, checkpoint)
    effective_quant(checkpoint, config.quant)
    if needs_tokenizer and not has_tokenizer(checkpoint):
        raise no_tokenizer()
    return checkpoint


def ids_of_prompts(
    config: EngineConfig,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    params: SamplingParams,
    *,
    chat: bool,
) -> list[list[int]]:
    """The token ids of each prompt; RequestError or PromptTooLong for one that the model cannot take.
    `chat`: the prompts are what a chat template wrote, to which nothing is added.
    """
    model = checkpoint.config
    longest = Longest(longest_sequence(config, checkpoint), config, model)
    all_ids = []
    for text in prompts:
        ids = longest.encode(text, tokenizer, add_special_tokens=not chat)
        asked = Asked(text, tuple(ids), params)
        longest.check(asked)
        check(asked, model.vocab_size, tokenizer)
        all_ids.append(ids)
    return all_ids


def check_structured(checkpoint: Checkpoint, tokenizer: Tokenizer, params: SamplingParams) -> None:
    """RequestError for structured output that llguidance does not take, UsageError without it."""
    if params.structured is not None:
        Grammars(tokenizer, checkpoint.config.vocab_size, ()).compiled(params.structured)
