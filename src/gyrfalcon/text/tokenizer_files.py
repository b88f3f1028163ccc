"""Reads the tokenizer files of a folder as transformers 5 does: how a text is split, the added
tokens and their names, the tokens added around every text. Knows no Tokenizer and no chat
templates.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from gyrfalcon.errors import CheckpointError
from gyrfalcon.files.foreign import open_foreign, read_json

# What is read beside weights and config.json: the tokenizer, chat templates, settings of generation.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
TEMPLATE_FOLDER = "additional_chat_templates"  # NAME.jinja each
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "merges.txt")

END_OF_TEXT = "<|endoftext|>"
GPT2_CLASS = "GPT2Tokenizer"
GPT2_NAMES = ("bos_token", "eos_token", "unk_token")  # what it calls the end of text by default
GPT2_END_ID = 50256  # the last of GPT-2's own vocabulary
NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")

Settings = dict[str, object]  # of tokenizer_config.json and what is merged into them
Token = str | AddedToken


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The contents of a folder's tokenizer files."""

    library: tokenizers.Tokenizer
    names: Mapping[str, str]  # such as eos_token → its text
    where: Path  # the file of the vocabulary


def names_of_files(folder: Path) -> list[str]:
    """Those of FILES that exist, and named chat templates."""
    templates = sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))
    names = (*FILES, *(f"{TEMPLATE_FOLDER}/{path.name}" for path in templates))
    return [name for name in names if (folder / name).is_file()]


def read_tokenizer(folder: Path, stated_class: object = None) -> TokenizerFiles:
    """Reads tokenizer.json, else vocab.json and merges.txt, and the files beside them; raises
    CheckpointError. `stated_class` is the tokenizer_class of config.json, for a
    tokenizer_config.json without one.
    """
    settings = _json(folder / "tokenizer_config.json")
    is_gpt2 = _is_gpt2(settings.pop("tokenizer_class", None) or stated_class)
    whole, vocab, merges = (folder / name for name in VOCABULARY_FILES)
    for path in (whole, vocab, merges):
        if path.is_file():
            open_foreign(path).close()
    if whole.is_file():
        content = _json(whole)
        _refuse_affixes(content, whole)
        library = tokenizers.Tokenizer.from_file(str(whole))
        in_file = {
            _index(token.get("id"), whole): _token(token, whole)
            for token in _objects(content.get("added_tokens"), whole)
        }
        if is_gpt2:  # takes the vocabulary alone: added tokens are those that are listed elsewhere
            library = tokenizers.Tokenizer.from_str(json.dumps(content | {"added_tokens": []}))
    elif vocab.is_file() and merges.is_file():
        library, in_file = tokenizers.Tokenizer(models.BPE.from_file(str(vocab), str(merges))), {}
        is_gpt2 = is_gpt2 or library.token_to_id(END_OF_TEXT) == GPT2_END_ID
        if not is_gpt2:
            raise CheckpointError(
                f"a tokenizer.json in {folder}, or {GPT2_CLASS} as its tokenizer_class",
                "vocab.json and merges.txt, which do not say how a text is split into words",
                "copy the model's tokenizer.json there",
            )
    else:
        raise CheckpointError(
            f"tokenizer.json, or vocab.json and merges.txt, in {folder}",
            "neither" if folder.is_dir() else "no such folder",
            "copy the tokenizer files of the model there",
        )
    if is_gpt2:
        _split_as_gpt2(library, settings, whole)
    defaults: Settings = dict.fromkeys(GPT2_NAMES, END_OF_TEXT) if is_gpt2 else {}
    names, extra, added = _named(folder, settings, in_file, defaults)
    _add(library, added, names, extra)
    library.encode_special_tokens = settings.get("split_special_tokens") is True
    texts = {name: str(token) for name, token in names.items()}
    if not whole.is_file():
        library.post_processor = _frame(library, texts, settings)
    return TokenizerFiles(library, texts, whole if whole.is_file() else vocab)


def _refuse_affixes(content: Settings, whole: Path) -> None:
    """Refuses a vocabulary that marks where words begin or end: its tokens are not made of bytes
    alone, so texts would lose letters, and the library may crash.
    """
    model = content.get("model")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        affix = model.get(name) if isinstance(model, dict) else None
        if affix:
            raise CheckpointError(
                f"a byte-level BPE in {whole}",
                f"one with the {name} {affix!r:.80}",
                "use the model's own tokenizer",
            )


def _is_gpt2(stated_class: object) -> bool:
    return isinstance(stated_class, str) and stated_class.removesuffix("Fast") == GPT2_CLASS


def _split_as_gpt2(library: tokenizers.Tokenizer, settings: Settings, whole: Path) -> None:
    """By the rule of GPT2Tokenizer, with the settings' add_prefix_space. A tokenizer.json that splits
    otherwise is refused: transformers 4 does as it says, transformers 5 as the class does.
    """
    stated = library.pre_tokenizer
    by_rule = isinstance(stated, pre_tokenizers.ByteLevel) and stated.use_regex
    if whole.is_file() and not (by_rule and library.normalizer is None):
        raise CheckpointError(
            f"a {whole} that splits a text as its tokenizer_class {GPT2_CLASS} does",
            f"{type(stated).__name__}",
            "write the class that it was made with, such as PreTrainedTokenizerFast, in"
            " tokenizer_config.json",
        )
    spaced = settings.get("add_prefix_space") is True
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    library.decoder = decoders.ByteLevel()


def _named(
    folder: Path,
    settings: Settings,
    in_file: Mapping[int, AddedToken],
    defaults: Settings,
) -> tuple[dict[str, Token], list[Token], dict[int, AddedToken]]:
    """The tokens with a name, the special ones without, and all added tokens by their stated ids.

    special_tokens_map.json and added_tokens.json are older forms of what tokenizer_config.json says:
    they count only where it lists no added tokens.
    """
    where = folder / "tokenizer_config.json"
    if not settings.get("extra_special_tokens"):
        _rename_additional(settings)
    own_names = _take_names(settings)
    _list(settings.get("extra_special_tokens"), where)
    listed = settings.get("added_tokens_decoder")
    if listed is not None:
        added = {
            _index(index, where): _token(token, where)
            for index, token in _object(listed, where).items()
        }
    else:
        _merge_map(folder / "special_tokens_map.json", settings)
        own_names |= _take_extra_names(settings)
        added = _older_added(folder / "added_tokens.json", settings) | dict(in_file)
    if "extra_special_tokens" not in settings:
        _rename_additional(settings)
    extra = _list(settings.get("extra_special_tokens"), where)
    by_text = {str(token): token for token in added.values()}
    stated = {name: value for name in NAMES if (value := (defaults | settings).get(name))}
    names = {
        name: _named_token(token, by_text, where)
        for name, token in (stated | _other_names(settings) | own_names).items()
    }
    return names, [_named_token(token, {}, where) for token in extra], added


def _rename_additional(settings: Settings) -> None:
    """Renames the older name of extra_special_tokens."""
    if "additional_special_tokens" in settings:
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")


def _other_names(settings: Settings) -> Settings:
    """Names of tokens that only some models have, such as image_token."""
    return {
        name: value
        for name, value in settings.items()
        if name.endswith("_token")
        and name not in NAMES
        and isinstance(value, str | dict | AddedToken)
    }


def _take_names(settings: Settings) -> Settings:
    """Removes tokens that are plain texts, and those that extra_special_tokens names."""
    plain = [name for name, value in _other_names(settings).items() if isinstance(value, str)]
    names = {name: settings.pop(name) for name in plain}
    return names | _take_extra_names(settings)


def _take_extra_names(settings: Settings) -> Settings:
    extra = settings.get("extra_special_tokens")
    if not isinstance(extra, dict):
        return {}
    del settings["extra_special_tokens"]
    return extra


def _merge_map(path: Path, settings: Settings) -> None:
    """special_tokens_map.json overrides the settings; its further tokens are added to theirs."""
    for name, value in _json(path).items():
        if name == "extra_special_tokens" and isinstance(value, list):
            known = _list(settings.get(name), path)
            settings[name] = known + [one for one in value if one not in known]
        elif isinstance(value, dict) and name != "extra_special_tokens":
            settings[name] = _token(value | {"special": True}, path)
        else:
            settings[name] = value


def _older_added(path: Path, settings: Settings) -> dict[int, AddedToken]:
    """added_tokens.json: text → id."""
    special = {str(settings[name]) for name in NAMES if settings.get(name)}
    special |= {str(token) for token in _list(settings.get("extra_special_tokens"), path)}
    return {
        _index(index, path): AddedToken(
            text, normalized=text not in special, special=text in special
        )
        for text, index in _json(path).items()
    }


def _add(
    library: tokenizers.Tokenizer,
    added: Mapping[int, AddedToken],
    names: Mapping[str, Token],
    extra: list[Token],
) -> None:
    """Adds tokens in the order of their stated ids, then named ones; new ones get the next free ids."""
    tokens: list[Token] = [token for _, token in sorted(added.items(), key=lambda pair: pair[0])]
    known = {token.content for token in library.get_added_tokens_decoder().values()}
    known |= {str(token) for token in tokens}
    for token in (*names.values(), *extra):
        if str(token) not in known and token not in tokens:  # one in both forms: the latter counts
            tokens.append(token)
    texts_of_names = {str(token) for token in names.values()}
    ready = [
        AddedToken(token, special=True) if isinstance(token, str) else token for token in tokens
    ]
    for one in ready:
        one.special = one.special or one.content in texts_of_names
    library.add_tokens(ready)


def _frame(
    library: tokenizers.Tokenizer, names: Mapping[str, str], settings: Settings
) -> processors.TemplateProcessing:
    """The tokens that add_bos_token and add_eos_token add around a text."""
    begin = names.get("bos_token") if settings.get("add_bos_token") is True else None
    end = names.get("eos_token") if settings.get("add_eos_token") is True else None
    around = [token for token in (begin, end) if token is not None]
    return processors.TemplateProcessing(
        single=[token for token in (begin, "$A", end) if token is not None],
        pair=["$A", "$B:1"],
        special_tokens=[(token, library.token_to_id(token)) for token in dict.fromkeys(around)],
    )


def _json(path: Path) -> Settings:
    return read_json(path) if path.is_file() else {}


def _named_token(value: object, by_text: Mapping[str, AddedToken], where: Path) -> Token:
    if isinstance(value, str):
        return by_text.get(value, value)
    return _token(value, where)


def _token(value: object, where: Path) -> AddedToken:
    if isinstance(value, AddedToken):
        return value
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        flags = {flag: value[flag] for flag in FLAGS if flag in value}
        if all(isinstance(flag, bool) for flag in flags.values()):
            return AddedToken(value["content"], **flags)
    raise CheckpointError(f"an added token in {where}", f"{value!r:.80}", "fetch the file again")


def _index(value: object, where: Path) -> int:
    digits = str(value)
    if isinstance(value, int | str) and digits.isdecimal():
        return int(digits)
    raise CheckpointError(f"the id of an added token in {where}", repr(value), "fetch it again")


def _object(value: object, where: Path) -> Settings:
    if isinstance(value, dict):
        return value
    raise CheckpointError(f"an object of tokens in {where}", f"{value!r:.80}", "fetch it again")


def _objects(value: object, where: Path) -> list[Settings]:
    return [_object(one, where) for one in _list(value, where)]


def _list(value: object, where: Path) -> list[object]:
    if value is None or isinstance(value, list):
        return list(value or ())
    raise CheckpointError(f"a list of tokens in {where}", f"{value!r:.80}", "fetch it again")
