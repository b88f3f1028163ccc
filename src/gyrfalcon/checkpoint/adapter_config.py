"""The adapter_config.json of a LoRA adapter, as peft writes it: what its matrices are scaled by, and what
cannot be merged. Reads no tensor.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gyrfalcon.errors import ConfigError
from gyrfalcon.files.foreign import read_json
from gyrfalcon.files.json_fields import Fields

ADAPTER_CONFIG = "adapter_config.json"

# Initialisations that leave the base weights alone. The others (pissa, olora, corda, loftq, …) take what they
# put into the adapter out of the base weights, which such an adapter cannot be merged into.
KEEP_BASE = (True, False, "gaussian", "eva", "orthogonal")

# Fields that say how an adapter was trained; which layers it has is read from its tensors' names.
HARMLESS = frozenset(
    "auto_mapping bias corda_config eva_config exclude_modules inference_mode layers_pattern "
    "layers_to_transform loftq_config lora_dropout lora_ga_config megatron_config megatron_core peft_version "
    "qalora_group_size revision runtime_config target_modules task_type velora_config".split()
)
UNSET: tuple[object, ...] = (None, False, [], {}, "")

# What patterns of layer names may cost, which are regular expressions of strangers.
LONGEST_NAME = 50  # of a layer that patterns are for: no model has a longer one
MOST_PATHS = 2_000_000  # that a matcher may try in one name, with all patterns together
ONE_LETTER = re.compile(r"\\\D|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)  # an escape, a class
NOT_COUNTED = re.compile(r"\(\?(?!:)|\)[*+{]|\\")  # flags, looking around, groups that repeat, \1


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What the tensors of an adapter mean."""

    base_model: str | None  # the name of the model it was trained on
    rank: int
    alpha: float
    ranks: Mapping[str, int]  # of layers whose names end with a pattern
    alphas: Mapping[str, float]
    rslora: bool  # alpha is divided by the root of the rank
    fan_in_fan_out: bool
    saved_modules: tuple[str, ...]  # replaced as a whole: what their names end with
    ties_weights: bool  # changes of a tied embedding and head follow each other

    @classmethod
    def read(cls, folder: Path) -> "AdapterConfig":
        """CheckpointError when there is none or no JSON, ConfigError for what cannot be merged."""
        path = folder / ADAPTER_CONFIG
        fields = Fields(read_json(path), str(path))
        kind = fields.take(str, "peft_type")
        if kind != "LORA":
            do = "use a LoRA adapter, or merge this one with peft and give the merged model"
            raise ConfigError(f"peft_type LORA in {path}", str(kind), do)
        _check_initialisation(fields)
        config = cls(
            base_model=fields.take(str, "base_model_name_or_path"),
            rank=fields.positive("r"),
            alpha=fields.need(float, "lora_alpha"),
            ranks=_ranks(fields),
            alphas=_alphas(fields),
            rslora=fields.take(bool, "use_rslora") or False,
            fan_in_fan_out=fields.take(bool, "fan_in_fan_out") or False,
            saved_modules=_words(fields, "modules_to_save"),
            ties_weights=fields.take(bool, "ensure_weight_tying") or False,
        )
        _refuse_unknown(fields)
        return config

    def rank_of(self, module: str) -> int:
        """The rank of the layer of that name."""
        return self.ranks.get(_matching(self.ranks, module), self.rank)

    def scale_of(self, module: str) -> float:
        """What the product of its two matrices is multiplied with."""
        rank = self.rank_of(module)
        alpha = self.alphas.get(_matching(self.alphas, module), self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def saves(self, module: str) -> bool:
        """Whether a layer, or what it is a part of, is among modules_to_save."""
        parts = module.split(".")
        names = [".".join(parts[: end + 1]) for end in range(len(parts))]
        return any(name.endswith(saved) for name in names for saved in self.saved_modules)


def _matching(patterns: Mapping[str, object], module: str) -> str:
    """The first pattern that matches, as peft matches; "" where none does."""
    if len(module) > LONGEST_NAME:
        return ""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), "")


def _check_initialisation(fields: Fields) -> None:
    fields.read.add("init_lora_weights")
    way = fields.raw.get("init_lora_weights", True)
    if way is None or way in KEEP_BASE or str(way).lower() == "mica":
        return
    do = "save it with peft's path_initial_model_for_weight_conversion"
    raise ConfigError(
        f"an adapter that leaves the base weights as they are in {fields.where}",
        f"init_lora_weights = {way!r}",
        do,
    )


def _ranks(fields: Fields) -> dict[str, int]:
    ranks = _patterns(fields, "rank_pattern")
    return {} if ranks is None else {key: ranks.positive(key) for key in ranks.raw}


def _alphas(fields: Fields) -> dict[str, float]:
    alphas = _patterns(fields, "alpha_pattern")
    return {} if alphas is None else {key: alphas.need(float, key) for key in alphas.raw}


def _patterns(fields: Fields, name: str) -> Fields | None:
    """ConfigError for one that is no pattern, and for those that could take for ever."""
    found, num_paths = fields.nested(name), 0
    for key in found.raw if found is not None else ():
        try:
            re.compile(key)
        except re.error as error:
            got = f"{key!r:.80} ({error})"
            raise ConfigError(
                f"patterns of layer names in {name}", got, f"fix {fields.where}"
            ) from None
        num_paths += _num_paths(key)
        if num_paths > MOST_PATHS:
            raise _refused(
                f"patterns of layer names in {name} of {fields.where} that are matched quickly",
                f"{key!r:.80}",
            )
    return found


def _num_paths(pattern: str) -> int:
    """How many paths a matcher tries at most in a name; too many where they are not counted."""
    plain = ONE_LETTER.sub("x", pattern)
    if NOT_COUNTED.search(plain):
        return MOST_PATHS + 1
    paths, repeats, alternatives = 1, 0, [1]  # the last of the groups that are open
    for letter in plain.replace("(?:", "("):
        if letter == "(":
            alternatives.append(1)
        elif letter == "|":
            alternatives[-1] += 1
        elif letter == ")":
            paths *= alternatives.pop()
        elif letter in "*+{":
            repeats += 1  # they share one name's letters
            paths = -(-paths * LONGEST_NAME // repeats)
        elif letter == "?":
            paths *= 2
    return paths * alternatives[0]


def _words(fields: Fields, name: str) -> tuple[str, ...]:
    fields.read.add(name)
    value = fields.raw.get(name) or []
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ConfigError(f"a list of names for {name}", repr(value), f"fix {fields.where}")
    return tuple(value)


def _refuse_unknown(fields: Fields) -> None:
    """Other kinds of LoRA are fields of their own: use_dora, trainable_token_indices, lora_bias and more."""
    for name, value in fields.raw.items():
        if name not in fields.read | HARMLESS and value not in UNSET:
            raise _refused(
                f"an adapter whose kind can be merged in {fields.where}", f"{name} = {value!r:.80}"
            )


def _refused(wanted: str, got: str) -> ConfigError:
    return ConfigError(wanted, got, "merge it with peft and give the merged model")
