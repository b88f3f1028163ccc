"""Tokenizer: text to ids and back, from a checkpoint's own byte-level BPE files.

Adds nothing to a text (Falcon has no begin token); the end token is known by its name, whatever configs say.
"""

from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from gyrfalcon.chat import ChatFormat, Message
from gyrfalcon.errors import CheckpointError, RequestError

END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """One checkpoint's tokenizer and chat format."""

    def __init__(self, library: tokenizers.Tokenizer, chat_format: ChatFormat, where: Path) -> None:
        end = library.token_to_id(END_OF_TEXT)
        if end is None:
            raise CheckpointError(
                f"{END_OF_TEXT} in {where}", "none", "use the model's own tokenizer"
            )
        if not (
            isinstance(library.model, models.BPE)
            and isinstance(library.decoder, decoders.ByteLevel)
        ):
            got = f"{type(library.model).__name__} with decoder {type(library.decoder).__name__}"
            raise CheckpointError(
                f"a byte-level BPE in {where}", got, "use the model's own tokenizer"
            )
        library.no_padding()
        library.no_truncation()
        library.add_special_tokens([END_OF_TEXT])
        self._library = library
        self._special = {
            i for i, token in library.get_added_tokens_decoder().items() if token.special
        }
        self._bytes = {
            i: _to_bytes(token) for token, i in library.get_vocab(with_added_tokens=True).items()
        }
        self.text_bytes = {i: text for i, text in self._bytes.items() if i not in self._special}
        self.eos_id: int = end
        self.chat_format = chat_format

    @classmethod
    def load(cls, folder: Path, hidden_size: int | None = None) -> "Tokenizer":
        """Reads tokenizer.json, else GPT-2's vocab.json and merges.txt; raises CheckpointError.

        `hidden_size` is the model's: it tells the chat format of 180B where the tokenizer does not.
        """
        whole, vocab, merges = (
            folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt")
        )
        chat_format = ChatFormat.of(folder, hidden_size)
        try:
            if whole.is_file():
                return cls(tokenizers.Tokenizer.from_file(str(whole)), chat_format, whole)
            if vocab.is_file() and merges.is_file():
                return cls(_gpt2(vocab, merges), chat_format, vocab)
        except CheckpointError:
            raise
        except Exception as error:  # the library raises nothing more special
            raise CheckpointError(
                f"a tokenizer in {folder}", f"{error}", "fetch its files again"
            ) from None
        raise CheckpointError(
            f"tokenizer.json, or vocab.json and merges.txt, in {folder}",
            "neither" if folder.is_dir() else "no such folder",
            "copy the tokenizer files of the model there",
        )

    @property
    def vocab_size(self) -> int:
        """How many ids it knows; a model may have a few more, which mean nothing."""
        return len(self._bytes)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, special tokens in it recognised; RequestError for half a surrogate pair."""
        try:
            ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):
            raise RequestError("text", "half a surrogate pair", "send valid Unicode") from None
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of some ids; bytes that are no UTF-8 become U+FFFD, ids without meaning nothing."""
        shown = (i for i in ids if not (skip_special and self.is_special(i)))
        return b"".join(map(self.token_bytes, shown)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """What one id adds to the UTF-8 text; nothing for an id without a meaning."""
        return self._bytes.get(token_id, b"")

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a mark such as the end of text, which is no text itself."""
        return token_id in self._special

    def chat_prompt(self, messages: Sequence[Message]) -> str:
        """The text that asks the model for the next turn of a conversation; raises RequestError."""
        return self.chat_format.prompt(messages)


def _gpt2(vocab: Path, merges: Path) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return library


def _byte_letters() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 letters stand for themselves, the others are U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + i): byte for i, byte in enumerate(others)
    }


BYTE_OF_LETTER = _byte_letters()


def _to_bytes(token: str) -> bytes:
    """Decodes a token in the byte alphabet; any other (an added one with a space, say) is plain text."""
    try:
        return bytes(map(BYTE_OF_LETTER.__getitem__, token))
    except KeyError:
        return token.encode()
