"""Turns what a user calls a model into a folder: one that exists, or a hub id's in the hub's cache.

Only files that are read are fetched, never code, and .bin files only where there is no safetensors.
Needs no torch, which takes longer to import than a cached model to be found.
"""

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from glob import escape
from pathlib import Path

from gyrfalcon.checkpoint.adapter_config import ADAPTER_CONFIG
from gyrfalcon.checkpoint.adapter_folder import ADAPTER_WEIGHTS, expanded
from gyrfalcon.checkpoint.weights_index import WEIGHTS, read_index
from gyrfalcon.console.interrupted import interrupts_tell
from gyrfalcon.console.progress import LogBar
from gyrfalcon.console.suggestion import path_meant
from gyrfalcon.errors import (
    DISK_FULL,
    PIP_INSTALL,
    CheckpointError,
    DiskFull,
    GyrfalconError,
    UsageError,
)
from gyrfalcon.text.tokenizer_files import FILES, TEMPLATE_FOLDER

HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)

ORGANISATION = "tiiuae"
PUBLISHED = (
    "falcon-rw-1b",
    "falcon-rw-7b",
    "falcon-7b",
    "falcon-7b-instruct",
    "falcon-40b",
    "falcon-40b-instruct",
    "falcon-180B",
    "falcon-180B-chat",
    "falcon-11B",
)

# The model that ships with the package.
NESTLING = Path(__file__).parent.parent / "nestling" / "model"

TEXT_FILES = ["config.json", ADAPTER_CONFIG, *FILES, f"{TEMPLATE_FOLDER}/*.jinja"]
SAFETENSORS_FILES = ["model*.safetensors", "model.safetensors.index.json", ADAPTER_WEIGHTS[0]]
BIN_FILES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
BELOW = ("model*/*", "pytorch_model*/*")  # a star stands for folders, too


def resolve_model(name: str) -> Path:
    """The folder of a model; raises CheckpointError where there is none and the hub cannot give one.

    name: a folder; nestling, the model that ships with the package; or org/name or
    org/name@revision on the Hugging Face hub.
    """
    folder = expanded(name)
    if name and folder.is_dir():
        return folder
    if name == "nestling":
        return NESTLING
    hub_id = HUB_ID.fullmatch(name)
    if folder.exists() or hub_id is None:
        got = "no such folder" if name else "nothing"
        if folder.is_file():
            got = "a file"
        raise CheckpointError(
            f"a model folder, nestling or a hub id like tiiuae/falcon-7b for {name or repr(name)}",
            got,
            path_meant(name, _id_meant(name), "nestling"),
        )
    with interrupts_tell(lambda: "files that were fetched are kept; run the same command to go on"):
        return _download(hub_id["repo"], hub_id["revision"])


def _id_meant(name: str) -> str:
    """Asks whether a published model's name alone meant the model on the hub."""
    near = next((one for one in PUBLISHED if one.lower() == name.lower()), None)
    return f"did you mean {ORGANISATION}/{near}?" if near else "check the name"


def _download(repo: str, revision: str | None) -> Path:
    folder = _fetch(repo, revision, TEXT_FILES + SAFETENSORS_FILES)
    commit = folder.name  # a snapshot's folder is named by it
    if bins := _needed_bins(folder):
        _fetch(repo, commit, bins)
    shards = _missing_shards(folder)
    if shards:
        _fetch(repo, commit, [escape(file) for file in shards], ignore=[])
    if (folder / ADAPTER_CONFIG).exists():  # alone, it says itself which model it is for
        return folder
    for pattern, what in (("config.json", "a config.json"), ("*model*.*", "weights")):
        if not any(folder.glob(pattern)):
            raise CheckpointError(
                f"{what} in hub model {repo}", "none", "choose a model in transformers' format"
            )
    return folder


def _needed_bins(folder: Path) -> list[str]:
    """The .bin files of what has no safetensors."""
    bins = [] if any(folder.glob("model*.safetensors*")) else list(BIN_FILES)
    adapter, other = ADAPTER_WEIGHTS
    if (folder / ADAPTER_CONFIG).exists() and not (folder / adapter).exists():
        bins.append(other)
    return bins


def _missing_shards(folder: Path) -> list[str]:
    """What an index names beyond the usual names and the top folder; a damaged index is refused later."""
    for name in WEIGHTS:
        with suppress(CheckpointError):
            files = set(read_index(folder / f"{name}.index.json").values())
            return sorted(file for file in files if not (folder / file).exists())
    return []


def _fetch(
    repo: str, revision: str | None, patterns: list[str], ignore: Sequence[str] = BELOW
) -> Path:
    """Brings the matching files of a repository to the cache, as far as they are not there."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UsageError(
            f"the folder {repo}, or huggingface_hub to fetch it as a hub model",
            "neither",
            path_meant(repo, f"check the path, or {PIP_INSTALL} huggingface_hub"),
        ) from None
    try:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=list(ignore),
                tqdm_class=None if sys.stderr.isatty() else LogBar,
            )
        )
    except (
        Exception
    ) as error:  # its kinds differ between versions of the library and of the client under it
        raise _explained(error, repo, revision) from error


def _explained(error: Exception, repo: str, revision: str | None) -> GyrfalconError:
    """One line for what the hub or the way to it did."""
    from huggingface_hub import errors

    wanted = f"the hub model {repo}" + (f" at {revision}" if revision else "")
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(
            wanted, "no access", "accept its terms on its hub page, then hf auth login"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            wanted,
            "no such folder here and no such model there",
            path_meant(repo, "check the name; if it is private, hf auth login"),
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(wanted, "no such revision", "check the name behind the @")
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return DiskFull(wanted, "a full disk", "free some space or set HF_HOME, and run this again")
    if isinstance(error, errors.LocalEntryNotFoundError):
        return CheckpointError(
            wanted, _line(error.__cause__ or error), "check the connection; finished files are kept"
        )
    return CheckpointError(wanted, _line(error), "run this again; finished files are kept")


def _line(error: BaseException) -> str:
    return f"{type(error).__name__} ({' '.join(str(error).split())})"
