"""A tiny byte-level BPE tokenizer in the real format, trained on the spot, for tiny checkpoints."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

# Falcon's own marks in Falcon's own order, which puts the end of text at 11.
MARKS = [f">>{word}<<" for word in "TITLE ABSTRACT INTRODUCTION SUMMARY COMMENT ANSWER".split()]
MARKS += [f">>{word}<<" for word in "QUESTION DOMAIN PREFIX SUFFIX MIDDLE".split()] + [
    "<|endoftext|>"
]

SENTENCES = (
    "A gyrfalcon is the largest of falcons; it nests on cliffs in the far north and hunts over open land.",
    "User: What do young falcons learn first? Assistant: They learn to fly, then to follow and strike.",
    "When the wind turned, the bird left its rock, fell for a moment and rose over the white valley.",
    "There are 7 eggs in 3 nests, 40 feathers in a box, and 180 steps from the house down to the water.",
    "Once upon a time there was a child who wanted to know how things work, and who asked about everything.",
    "The quick brown fox jumps over the lazy dog, but the dog, being lazy, opens one eye and sleeps again.",
)


def make_tokenizer(folder: Path, vocab_size: int = 509) -> Path:
    """Writes tokenizer.json (`vocab_size` ids, 11 ends a text), tokenizer_config.json; returns the folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=MARKS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    assert tokenizer.get_vocab_size() == vocab_size, tokenizer.get_vocab_size()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": MARKS[-1],
        "model_max_length": 2048,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return folder
