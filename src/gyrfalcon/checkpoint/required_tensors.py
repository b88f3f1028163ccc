"""Finds what a model needs among the tensors that files hold, whatever an index or a writer called them.

Only what the config implies is needed. What else is stored is left aside, with a note, where it leaves the
mathematics alone; where it would change it, it stays and is refused as unknown by whoever compares names.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from gyrfalcon.checkpoint.hf_folder import OpenedFolder
from gyrfalcon.checkpoint.tensors import MultiFileSource, TensorLocation, WeightsFile, Zeros
from gyrfalcon.config import ModelConfig
from gyrfalcon.console.format import counted
from gyrfalcon.errors import CheckpointError
from gyrfalcon.model.architectures import make_layout
from gyrfalcon.model.layout import Layout, TensorScheme, TensorSpec

# Buffers that older checkpoints stored and that follow from the config.
BUFFERS = re.compile(
    r"\.(inv_freq|original_inv_freq|cos_cached|sin_cached|masked_bias|position_ids)$"
    r"|\.(self_attention|attention|attn)\.bias$"
)
# What an adapter of some kind adds to a model; it takes part in computing logits, too.
ADDED = re.compile(r"lora|adapter|prompt|prefix|\bia3")

WEIGHT, BIAS = ".weight", ".bias"

# What a user is told of tensors; the example is the first of them.
MISPLACED = "the index is wrong about {count}, such as {example}: the files themselves were asked"
RENAMED = "{count} stored under another name, such as {example}"
ZERO = "{count} not stored, such as {example}: taken as zero, as transformers does"
BUFFER = "{count} ignored, such as {example}: buffers that follow from the config"
NO_BIAS = "{count} ignored, such as {example}: biases of zero, and the config has none"
BESIDE = "{count} ignored, such as {example}: no part of the language model"

Held = Mapping[str, Sequence[WeightsFile]]  # the files that hold a name


@dataclass(frozen=True, slots=True)
class _Copy:
    """One tensor as a file holds it."""

    file: WeightsFile
    name: str

    @property
    def location(self) -> TensorLocation:
        return TensorLocation(self.file, self.name)

    @property
    def oddity(self) -> str:
        """What it is where it cannot be read; "" for a tensor like any other."""
        return self.file.odd.get(self.name, "")

    def read(self) -> torch.Tensor:
        return self.file.read(self.name)


def find_tensors(
    config: ModelConfig, opened: OpenedFolder
) -> tuple[MultiFileSource, Layout, list[str]]:
    """The folder's tensors by the model's own names, which of them the model needs, and notes on what was
    found elsewhere or ignored.

    Reads headers alone, but for tensors that matter only where they are not zero or not alike. What is
    missing is not there, what is unknown is there under its own name. CheckpointError where two that
    differ stand for one, and where one that is needed cannot be computed with.
    """
    held = _held(opened.files)
    scheme = make_layout(config, has_head=True).scheme
    has_head = bool(_copies(scheme.head, held, scheme))
    lone_head = config.tied and has_head and not _copies(scheme.embedding, held, scheme)
    if not lone_head:
        _refuse_prefix(held, scheme)
    layout = make_layout(config, not config.tied or (has_head and not lone_head))
    needed = layout.tensors
    stored = {
        spec.name: _copies(
            scheme.head if lone_head and spec.name == scheme.embedding else spec.name, held, scheme
        )
        for spec in needed
    }
    found = {spec.name: _one_of(spec, stored[spec.name]) for spec in needed if stored[spec.name]}
    zeros = _zero_biases(needed, found)
    used = {copy.name for copies in stored.values() for copy in copies}
    extra = [_Copy(held[name][0], name) for name in sorted(held.keys() - used)]
    aside = _by_reason(extra, _bias_shapes(layout), scheme)
    unknown = aside.pop("", [])
    locations = {name: copy.location for name, copy in found.items()} | zeros
    locations |= {copy.name: copy.location for copy in unknown}
    other = [f"{copy.name} for {name}" for name, copy in found.items() if copy.name != name]
    told = {MISPLACED: _misplaced(opened, held), RENAMED: other, ZERO: list(zeros)}
    told |= {reason: [copy.name for copy in copies] for reason, copies in aside.items()}
    notes = [_note(what, names) for what, names in told.items() if names]
    return MultiFileSource(locations), layout, notes


def _note(what: str, names: Sequence[str]) -> str:
    return what.format(count=counted(len(names), "tensor"), example=names[0])


def _held(files: Mapping[str, WeightsFile]) -> dict[str, list[WeightsFile]]:
    held: dict[str, list[WeightsFile]] = {}
    for file in files.values():
        for name in (*file.names(), *file.odd):
            held.setdefault(name, []).append(file)
    return held


def _copies(name: str, held: Held, scheme: TensorScheme) -> list[_Copy]:
    """Wherever a tensor is stored, under its own name or one that transformers takes for it."""
    names = [name, scheme.base + name]
    if name.startswith(scheme.base):
        names.append(name.removeprefix(scheme.base))
    return [_Copy(file, stored) for stored in names for file in held.get(stored, ())]


def _one_of(spec: TensorSpec, copies: Sequence[_Copy]) -> _Copy:
    """The first copy. All others are read and must be alike, but where its shape is wrong in any case."""
    for copy in copies:
        if copy.oddity:
            raise CheckpointError(
                f"numbers that can be computed with for {spec.name}",
                f"{copy.oddity} in {copy.file.path}",
                "use a checkpoint in bf16, fp16 or fp32",
            )
    first, *others = copies
    for other in others:
        if not _is_same(first, other, spec):
            both = " and ".join(f"{copy.name} in {copy.file.path.name}" for copy in (first, other))
            raise CheckpointError(
                f"one {spec.name}", f"two that differ, {both}", "remove the wrong one"
            )
    return first


def _is_same(a: _Copy, b: _Copy, spec: TensorSpec) -> bool:
    """Whether two tensors are alike bit for bit."""
    forms = [(copy.file.shape(copy.name), copy.file.dtype(copy.name)) for copy in (a, b)]
    if forms[0] != forms[1]:
        return False
    if forms[0][0] != spec.shape:
        return True
    return torch.equal(*(copy.read().reshape(-1).view(torch.uint8) for copy in (a, b)))


def _zero_biases(
    needed: Sequence[TensorSpec], found: Mapping[str, _Copy]
) -> dict[str, TensorLocation]:
    """Biases that are nowhere stored, all of the norms' or all of the linear layers': zero by definition.
    Where some are stored, the others are missing.
    """
    biases = [spec for spec in needed if spec.name.endswith(BIAS)]
    locations: dict[str, TensorLocation] = {}
    for of_norms in (True, False):
        group = [spec for spec in biases if (spec.role == "norm") is of_norms]
        if any(spec.name in found for spec in group):
            continue
        for spec in group:
            weight = found.get(spec.name.removesuffix(BIAS) + WEIGHT)
            if weight is not None:
                zeros = Zeros(spec.shape, weight.file.dtype(weight.name))
                locations[spec.name] = TensorLocation(zeros, spec.name)
    return locations


def _bias_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """The biases that a model without any could have, by name."""
    biased = replace(layout, config=replace(layout.config, bias=True))
    shapes = {spec.name: spec.shape for spec in biased.tensors if spec.name.endswith(BIAS)}
    head = layout.scheme.head.removesuffix(WEIGHT)
    return shapes | {head + BIAS: (layout.config.vocab_size,)}


def _by_reason(
    extra: Sequence[_Copy], biases: Mapping[str, tuple[int, ...]], scheme: TensorScheme
) -> dict[str, list[_Copy]]:
    groups: dict[str, list[_Copy]] = {}
    for copy in extra:
        groups.setdefault(_why_aside(copy, biases, scheme), []).append(copy)
    return groups


def _why_aside(copy: _Copy, biases: Mapping[str, tuple[int, ...]], scheme: TensorScheme) -> str:
    """Why a tensor that is not needed leaves the mathematics alone; "" where it would change it."""
    if BUFFERS.search(copy.name):
        return BUFFER
    if not scheme.computes.search(copy.name) and not ADDED.search(copy.name):
        return BESIDE
    shape = biases.get(copy.name, biases.get(scheme.base + copy.name))
    fits = shape is not None and not copy.oddity and copy.file.shape(copy.name) == shape
    return NO_BIAS if fits and not copy.read().count_nonzero() else ""


def _refuse_prefix(held: Held, scheme: TensorScheme) -> None:
    """Says what stands before all names where the embedding is stored under a longer name alone."""
    embedding = scheme.embedding
    if _copies(embedding, held, scheme):
        return
    for name in held:
        for end in (embedding, embedding.removeprefix(scheme.base)):
            if name.endswith(f".{end}"):
                prefix = name.removesuffix(end)
                raise CheckpointError(
                    f"a tensor {embedding}", name, f"take {prefix} off the names of all tensors"
                )


def _misplaced(opened: OpenedFolder, held: Held) -> list[str]:
    """The tensors that an index, if there is one, forgets or seeks in another file."""
    if not opened.index:
        return []
    forgotten = [name for name in held if name not in opened.index]
    elsewhere = [
        name for name, path in opened.index.items() if opened.files[path] not in held.get(name, ())
    ]
    return sorted(forgotten + elsewhere)
