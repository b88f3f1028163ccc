"""Opens a Hugging Face folder or a cut as one lazy checkpoint, its names and shapes checked."""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gyrfalcon.checkpoint.adapter import Adapter, open_adapter
from gyrfalcon.checkpoint.adapter_folder import chosen_folder, refuse_lone_adapter
from gyrfalcon.checkpoint.hf_folder import open_weights
from gyrfalcon.checkpoint.manifest import MANIFEST, TOKENIZER_FOLDER, Manifest, has_manifest
from gyrfalcon.checkpoint.merged import merged, notes_on
from gyrfalcon.checkpoint.parts import PartsSource
from gyrfalcon.checkpoint.required_tensors import find_tensors
from gyrfalcon.checkpoint.tensors import TensorSource, listed
from gyrfalcon.config import ModelConfig
from gyrfalcon.device.dtypes import DTYPE_OF_WORD
from gyrfalcon.engine_config import NO_ADAPTER
from gyrfalcon.errors import CheckpointError, UsageError
from gyrfalcon.files.foreign import read_json
from gyrfalcon.model.architectures import config_from_json, make_layout
from gyrfalcon.model.layout import Layout, TensorSpec
from gyrfalcon.parallel.shards import Share
from gyrfalcon.text.tokenizer_files import names_of_files

PARTIAL = ".partial"  # what the name of an unfinished cut ends with
PART_FOLDER = "part_model"
FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk whose names and shapes are known to be right; its tensors are read when asked for."""

    folder: Path
    layout: Layout  # its tensors: how they are stored, what a rank owns
    raw_config: Mapping[str, object]
    source: TensorSource
    manifest: Manifest | None  # of a cut; None for a Hugging Face folder
    files: tuple[Path, ...]  # every weights file
    tokenizer_folder: Path
    notes: tuple[str, ...]  # what a user should know about how it was read
    adapter: Adapter | None = None  # merged into what `source` reads

    @property
    def config(self) -> ModelConfig:
        return self.layout.config

    @property
    def world_size(self) -> int | None:
        """The ranks a cut was made for; None for a Hugging Face folder."""
        return None if self.manifest is None else self.manifest.world_size

    @property
    def quant(self) -> str:
        """What the matrices of a cut are quantised to, or none."""
        return self.layout.quant

    @property
    def has_head(self) -> bool:
        """Whether a head of its own is stored; without one the embedding is the head."""
        return self.layout.has_head

    @property
    def adapter_name(self) -> str | None:
        """What the adapter is called that is merged here, or was when the model was cut."""
        if self.adapter is not None:
            return self.adapter.name
        kept = None if self.manifest is None else self.manifest.adapter
        return None if kept is None else kept.name


def open_checkpoint(folder: Path, adapter: str | None = None, dtype: str = "auto") -> Checkpoint:
    """Opens a Hugging Face folder or a cut; CheckpointError when files, names or shapes are not right.

    Reads headers, and of the data only what find_tensors() has to (a .bin in torch's oldest format has no
    header and is read at once; of an adapter, all tensors are).
    adapter: the folder of a LoRA adapter to merge, "." for the one that lies beside the weights, or "none";
    UsageError for one beside them without a word. dtype: the dtype of merged tensors, as in
    EngineConfig.
    """
    if has_manifest(folder):
        checkpoint = _open_cut(folder)
    else:
        refuse_half_a_cut(folder)
        refuse_lone_adapter(folder)
        checkpoint = _open_folder(folder)
    chosen = chosen_folder(adapter, folder)
    if chosen is not None:
        return _merged(checkpoint, open_adapter(chosen), DTYPE_OF_WORD.get(dtype))
    if adapter == NO_ADAPTER:
        _refuse_merged(checkpoint)
    return checkpoint


def _open_folder(folder: Path) -> Checkpoint:
    config_path = folder / "config.json"
    raw_config = read_json(config_path)
    config = config_from_json(raw_config, str(config_path))
    opened = open_weights(folder)
    source, layout, found = find_tensors(config, opened)
    check_tensors(folder, layout, source, None)
    notes = [*opened.notes, *found]
    head = layout.scheme.head
    if config.tied and head in source.names():
        notes.append(
            f"{head} is stored although the config ties it: it is used where it differs from the embedding"
        )
    files = tuple(file.path for file in opened.files.values())
    return Checkpoint(folder, layout, raw_config, source, None, files, folder, tuple(notes))


def _merged(checkpoint: Checkpoint, adapter: Adapter, dtype: torch.dtype | None) -> Checkpoint:
    """The checkpoint with the adapter; a head that parts from the embedding is no longer tied to it."""
    _refuse_adapter(checkpoint, adapter)
    source = merged(checkpoint.source, adapter, checkpoint.layout, dtype)
    config, raw_config = checkpoint.config, checkpoint.raw_config
    scheme = checkpoint.layout.scheme
    has_head = scheme.head in source.names()
    if config.tied and has_head and source.changed & {scheme.embedding, scheme.head}:
        config = replace(config, tied=False)
        raw_config = {**raw_config, "tie_word_embeddings": False}
    return replace(
        checkpoint,
        layout=replace(checkpoint.layout, config=config, has_head=has_head),
        raw_config=raw_config,
        source=source,
        notes=(*checkpoint.notes, *notes_on(adapter), *_tokenizer_notes(checkpoint, adapter)),
        adapter=adapter,
    )


def _tokenizer_notes(checkpoint: Checkpoint, adapter: Adapter) -> list[str]:
    """An adapter's own tokenizer files are left aside; many are copies of the model's."""
    there, ours = adapter.folder, checkpoint.tokenizer_folder
    other = [
        name for name in names_of_files(there) if _content(there / name) != _content(ours / name)
    ]
    if not other:
        return []
    return [f"{listed(other)} of the adapter {adapter.name} ignored: the model's own are used"]


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _refuse_adapter(checkpoint: Checkpoint, adapter: Adapter) -> None:
    """UsageError for a quantised cut, or one with the same adapter merged already."""
    manifest = checkpoint.manifest
    if manifest is None:
        return
    if manifest.quantisation is not None:
        wanted = "weights that are not quantised, to merge an adapter into"
        got = f"the cut {checkpoint.folder} in {manifest.quant}"
        do = f"cut again from the source with `adapter={adapter.folder}`"
        raise UsageError(wanted, got, do)
    if manifest.adapter is not None and manifest.adapter.files == adapter.summed().files:
        got = f"{adapter.folder}, which is merged into {checkpoint.folder} already"
        raise UsageError("an adapter that is not merged yet", got, "leave `adapter` out")


def _refuse_merged(checkpoint: Checkpoint) -> None:
    manifest = checkpoint.manifest
    if manifest is not None and manifest.adapter is not None:
        wanted = f"a cut without an adapter in {checkpoint.folder}"
        got = f"one that {manifest.adapter.name} is merged into"
        raise UsageError(wanted, got, "use its source, or leave `adapter` out")


def read_local(checkpoint: Checkpoint, spec: TensorSpec, share: Share) -> Tensor:
    """One rank's part of a tensor in its stored dtype; a view of the mapped file where that is possible."""
    ranges = checkpoint.layout.ranges(spec, share)
    manifest, source = checkpoint.manifest, checkpoint.source
    if (
        manifest is not None
        and isinstance(source, PartsSource)
        and manifest.world_size == share.ranks
    ):
        part = manifest.tensors[spec.name].parts[share.rank]
        if part.ranges == ranges:
            return source.part(spec.name, share.rank)
    return source.read(spec.name, spec.dim, ranges)


def _open_cut(folder: Path) -> Checkpoint:
    manifest = Manifest.read(folder)
    config = config_from_json(manifest.raw_config, f"the config in {folder / MANIFEST}")
    source = PartsSource(folder, manifest)
    faults = source.faults()
    if faults:
        raise CheckpointError(
            f"the files that {folder / MANIFEST} lists", listed(faults, "; "), "cut again"
        )
    layout = layout_of_cut(config, manifest)
    check_tensors(folder, layout, source, manifest)
    files = tuple(folder / path for path in manifest.files)
    notes = [
        f"{name} is the same as {kept} and is stored once"
        for name, kept in manifest.aliases.items()
    ]
    if manifest.adapter is not None:
        notes.append(f"the adapter {manifest.adapter.name} is merged into this cut")
    return Checkpoint(
        folder,
        layout,
        manifest.raw_config,
        source,
        manifest,
        files,
        folder / TOKENIZER_FOLDER,
        tuple(notes),
    )


def refuse_half_a_cut(folder: Path) -> None:
    place = Path(os.path.abspath(folder))  # "." has no name that a partial one's could begin with
    partial = place if place.name.endswith(PARTIAL) else place.parent / (place.name + PARTIAL)
    unfinished = partial.is_dir() and not (folder / "config.json").exists()
    if unfinished or (folder / PART_FOLDER).is_dir():
        found = partial if unfinished else folder
        raise CheckpointError(
            f"a whole cut in {folder}", f"an unfinished one in {found}", "run the same cut again"
        )


def layout_of_cut(config: ModelConfig, manifest: Manifest) -> Layout:
    """Which tensors a cut's manifest must list."""
    layout = make_layout(config, has_head=False, quant=manifest.quant)
    head = layout.stored_name(layout.scheme.head)
    untied = not config.tied and head not in manifest.aliases
    return layout.with_head(untied or head in manifest.tensors)


def check_tensors(
    folder: Path, layout: Layout, source: TensorSource, manifest: Manifest | None
) -> None:
    """Compares names, shapes and dtypes with the layout; CheckpointError names all that differs."""
    stored = set(source.names())
    specs = layout.stored
    missing = [spec.name for spec in specs if spec.name not in stored]
    unknown = sorted(stored - {spec.name for spec in specs})
    wrong = [fault for spec in specs if spec.name in stored for fault in _spec_faults(spec, source)]
    kinds = {"missing": missing, "unknown": unknown, "wrong": wrong}
    problems = [f"{kind}: {listed(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise CheckpointError(
            f"the {len(specs)} tensors that its config implies in {folder}",
            "; ".join(problems),
            _remedy(manifest, missing, wrong),
        )


def _remedy(manifest: Manifest | None, missing: Collection[str], wrong: Collection[str]) -> str:
    if manifest is not None:
        return "cut the checkpoint again with this version"
    if missing:
        return "fetch the checkpoint again, or correct its config.json"
    if wrong:
        return "correct its config.json, or use a checkpoint in bf16, fp16 or fp32"
    return (
        "correct its config.json (bias, num_hidden_layers) so that they take part, or remove them"
    )


def _spec_faults(spec: TensorSpec, source: TensorSource) -> Iterable[str]:
    shape, dtype = source.shape(spec.name), source.dtype(spec.name)
    if shape != spec.shape:
        yield f"{spec.name} {list(shape)} for {list(spec.shape)}"
    if dtype != spec.dtype if spec.dtype is not None else dtype not in FLOATS:
        yield f"{spec.name} of {dtype}"
