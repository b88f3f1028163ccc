"""Tokenizer: text to ids and back, with a checkpoint's own byte-level BPE files."""

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

import tokenizers
from tokenizers import decoders, models

from gyrfalcon.bounds import shown
from gyrfalcon.errors import CheckpointError, RequestError
from gyrfalcon.text.chat import Chat, Turn
from gyrfalcon.text.tokenizer_files import END_OF_TEXT, TokenizerFiles, read_tokenizer

# Pre-tokenizers that keep all of a text, unless set to remove the delimiters.
KEEPING = {b"Sequence", b"ByteLevel", b"Digits", b"Punctuation", b"Split"}


class Tokenizer:
    """One checkpoint's tokenizer, and how conversations with its model are written.

    special_tokens: the texts of tokens by the names that its files give them, such as eos_token.
    begin_ids: what stands before every text: nothing, or a begin token.
    end_ids: what ends a text by these files: eos_token, then <|endoftext|>; often one and the same.
    chat: the chat template of the checkpoint.
    """

    def __init__(self, files: TokenizerFiles, model_names: Collection[str] = ()) -> None:
        library = files.library
        if not (
            isinstance(library.model, models.BPE)
            and isinstance(library.decoder, decoders.ByteLevel)
        ):
            got = f"{type(library.model).__name__} with decoder {type(library.decoder).__name__}"
            raise CheckpointError(
                f"a byte-level BPE in {files.where}", got, "use the model's own tokenizer"
            )
        library.no_padding()
        library.no_truncation()
        self._library = library
        self._bytes = {
            i: _to_bytes(token) for token, i in library.get_vocab(with_added_tokens=True).items()
        }
        self._longest = max(map(len, self._bytes.values()))
        letters = {token for token in self._bytes.values() if len(token) == 1}
        self._unknown_bytes = bytes(b for b in range(256) if bytes([b]) not in letters)
        self._added = library.get_added_tokens_decoder()
        strips = any(token.lstrip or token.rstrip for token in self._added.values())
        self._keeps_text = library.normalizer is None and not strips and _splits_only(library)
        # A file may call a token ordinary that another calls special: the library knows which counts.
        special = [i for i in self._added if not library.decode([i], skip_special_tokens=True)]
        self.special_tokens: Mapping[str, str] = files.names
        ends = (library.token_to_id(token) for token in (self.eos_token, END_OF_TEXT) if token)
        self.end_ids = tuple(dict.fromkeys(end for end in ends if end is not None))
        frame = library.encode("a")
        self.begin_ids = tuple(frame.ids[: sum(takewhile(bool, frame.special_tokens_mask))])
        self.text_bytes = dict(self._bytes)
        self._marks: dict[int, str] = {}  # tokens that are not shown in text
        self.hide((*special, *self.end_ids))
        added = [token.content for token in self._added.values()]
        self.chat = Chat(files.where.parent, files.names, added, model_names)

    @classmethod
    def load(
        cls, folder: Path, model_names: Collection[str] = (), stated_class: object = None
    ) -> "Tokenizer":
        """Reads tokenizer.json, else GPT-2's vocab.json and merges.txt, and what stands beside them;
        raises CheckpointError.

        `model_names`: what the model is called; published chat models without a template are known by it.
        `stated_class` is the tokenizer_class of the model's config.json.
        """
        try:
            return cls(read_tokenizer(folder, stated_class), model_names)
        except CheckpointError:
            raise
        except Exception as error:  # the library raises nothing more special
            raise CheckpointError(
                f"a tokenizer in {folder}", f"{error}", "fetch its files again"
            ) from None

    @property
    def bos_token(self) -> str | None:
        """The text of the begin token, for chat templates."""
        return self.special_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        """The text of the end-of-text token, as the tokenizer's files name it."""
        return self.special_tokens.get("eos_token")

    @property
    def vocab_size(self) -> int:
        """The number of ids; a model may have a few more, which mean nothing."""
        return len(self._bytes)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text; special tokens in it are recognised. `add_special_tokens`: with what
        the files add around every text: mostly nothing, else a begin token, which a chat template
        writes itself.

        RequestError for anything but text, and for half a surrogate pair.
        """
        if not isinstance(text, str):
            raise RequestError("text", shown(text), "pass a string")
        try:
            ids: list[int] = self._library.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError):
            raise RequestError("text", "half a surrogate pair", "send valid Unicode") from None
        return ids

    def least_tokens(self, text: str) -> int:
        """A lower bound of the number of tokens of a text, without encoding it: as if each were as
        long as the longest. 0 where the tokenizer's files may drop text before it is split.
        """
        if not self._keeps_text:
            return 0
        known = text.encode(errors="replace").translate(None, self._unknown_bytes)
        return -(-len(known) // self._longest)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of some ids; bytes that are not UTF-8 become U+FFFD, ids without meaning
        nothing.
        """
        known = self.text_bytes if skip_special else self._bytes
        return b"".join(known.get(i, b"") for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of one id; none for an id without a meaning."""
        return self._bytes.get(token_id, b"")

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a special token, such as the end of text, which has no text of its own."""
        return token_id in self._marks

    def special_id(self, text: str) -> int | None:
        """The id of the special token with this text; None where there is none."""
        token_id: int | None = self._library.token_to_id(text)
        return token_id if token_id is not None and self.is_special(token_id) else None

    def special_in(self, texts: Sequence[str]) -> dict[int, str]:
        """The special tokens that occur in any of the texts, by id."""
        marks = self._marks.items()
        return {i: mark for i, mark in marks if mark and any(mark in text for text in texts)}

    def hide(self, end_ids: Collection[int]) -> None:
        """Hides tokens that end a text when decoding, even where the files call them ordinary added
        tokens. A word of the vocabulary that ends a text stays visible.
        """
        for token_id in end_ids:
            if token_id in self._added or token_id in self.end_ids:
                self.text_bytes.pop(token_id, None)
                self._marks[token_id] = str(self._library.id_to_token(token_id))

    def chat_prompt(self, messages: Sequence[Turn]) -> str:
        """The text that asks the model for the next turn of a conversation, by the chat template of its
        checkpoint. Raises RequestError for messages that it refuses, CheckpointError where there is none.

        >>> tokenizer.chat_prompt([Message("user", "Name a bird.")])  # or [{"role": …, "content": …}]
        '<|im_start|>user\\nName a bird.<|im_end|>\\n<|im_start|>assistant\\n'
        """
        return self.chat.prompt(messages)

    def chat_ids(self, messages: Sequence[Turn]) -> list[int]:
        """The ids of chat_prompt(): nothing stands before or after what the template writes.

        >>> params = SamplingParams(stop=engine.tokenizer.chat.stops)  # where the answer ends
        >>> engine.generate(engine.tokenizer.chat_ids([Message("user", "Name a bird.")]), params)
        """
        return self.encode(self.chat_prompt(messages), add_special_tokens=False)


def _splits_only(library: tokenizers.Tokenizer) -> bool:
    """Whether the pre-tokenizer keeps all of a text."""
    state = b"" if library.pre_tokenizer is None else library.pre_tokenizer.__getstate__()
    kinds = set(re.findall(rb'"type":"(\w+)"', state))
    return kinds <= KEEPING and b'"Removed"' not in state


def _byte_letters() -> dict[str, int]:
    """GPT-2's alphabet of bytes: printable Latin-1 letters for themselves, the others from U+0100
    on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + i): byte for i, byte in enumerate(others)
    }


BYTE_OF_LETTER = _byte_letters()


def _to_bytes(token: str) -> bytes:
    """Decodes a token in the byte alphabet; any other (an added one with a space, say) is plain
    text.
    """
    try:
        return bytes(map(BYTE_OF_LETTER.__getitem__, token))
    except KeyError:
        return token.encode()
