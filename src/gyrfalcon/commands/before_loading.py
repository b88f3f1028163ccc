"""What a command checks of its model before any weights are loaded, which may take minutes."""

from gyrfalcon.engine.build import longest_sequence
from gyrfalcon.engine.engine import has_tokenizer, no_tokenizer
from gyrfalcon.settings import EngineConfig
from gyrfalcon.weights.hub import resolve_model
from gyrfalcon.weights.load import run_quant
from gyrfalcon.weights.source import Checkpoint, open_checkpoint


def opened(config: EngineConfig, *, needs_tokenizer: bool = True) -> Checkpoint:
    """The model's checkpoint, of which headers are read; CheckpointError and UsageError where it does
    not go with the config, and where a tokenizer is needed and there is none.
    """
    checkpoint = open_checkpoint(resolve_model(config.model), config.adapter, config.dtype)
    longest_sequence(config, checkpoint)
    run_quant(checkpoint, config.quant)
    if needs_tokenizer and not has_tokenizer(checkpoint):
        raise no_tokenizer()
    return checkpoint
