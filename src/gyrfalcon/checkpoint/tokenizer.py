"""The tokenizer that lies beside a checkpoint's weights, and what ends a text of the model."""

from gyrfalcon.checkpoint.source import Checkpoint
from gyrfalcon.errors import CheckpointError
from gyrfalcon.text.end_ids import Ends, find_ends
from gyrfalcon.text.tokenizer import Tokenizer
from gyrfalcon.text.tokenizer_files import VOCABULARY_FILES


def has_tokenizer(checkpoint: Checkpoint) -> bool:
    """Whether any file of a tokenizer lies beside the weights."""
    return any((checkpoint.tokenizer_folder / name).exists() for name in VOCABULARY_FILES)


def no_tokenizer() -> CheckpointError:
    """What a call that needs a tokenizer raises where has_tokenizer() is False."""
    do = "copy them there, or pass token ids"
    return CheckpointError("tokenizer files beside the model", "none", do)


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """The checkpoint's tokenizer; None when there is not one file of it, so that ids can be used
    alone.
    """
    if not has_tokenizer(checkpoint):
        return None
    folder, stated_class = checkpoint.tokenizer_folder, checkpoint.raw_config.get("tokenizer_class")
    return Tokenizer.load(folder, _model_names(checkpoint), stated_class)


def _model_names(checkpoint: Checkpoint) -> list[str]:
    """What a checkpoint is called: by its folder, by the hub's cache, by its own config."""
    folder = checkpoint.folder.absolute()
    cached = folder.parent.parent.name if folder.parent.name == "snapshots" else ""
    return [folder.name, cached, str(checkpoint.raw_config.get("_name_or_path"))]


def ends_of(checkpoint: Checkpoint, tokenizer: Tokenizer | None) -> Ends:
    """Where a text ends. Marks that end one are left out of all texts from here on."""
    ends = find_ends(
        checkpoint.tokenizer_folder, checkpoint.raw_config, checkpoint.config.vocab_size, tokenizer
    )
    if tokenizer is not None:
        tokenizer.hide(ends.ids)
    return ends
