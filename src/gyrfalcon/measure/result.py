"""The document that every measurement writes: what was measured, on which model, how, on which
machine and when. Reads and writes it; each measurement owns its `result`.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from gyrfalcon import __version__
from gyrfalcon.config import ModelConfig
from gyrfalcon.device import HOST
from gyrfalcon.device.dtypes import WORD_OF_DTYPE
from gyrfalcon.engine.engine import Engine
from gyrfalcon.errors import UsageError
from gyrfalcon.files.json_fields import Fields, parsed_json, shown
from gyrfalcon.files.output import replace_file
from gyrfalcon.files.text import contents
from gyrfalcon.measure.machine import examine
from gyrfalcon.model.architectures import make_layout

FORMAT = "gyrfalcon-result"
VERSION = 1
KINDS = ("speed", "mmlu", "precision", "perplexity")
LARGEST = 1e30  # of the numbers in a result: limits per second are the largest
SHOWN_KEYS = 3  # of a foreign document in an error


def envelope(
    kind: str, engine: Engine, command: Sequence[str], result: Mapping[str, object]
) -> dict[str, object]:
    """The document around a `result`: `kind` is one of KINDS, `command` the words typed after
    `gyrfalcon`.
    """
    assert kind in KINDS
    return {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "gyrfalcon": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": model_facts(engine.config.model_name, engine.model_config),
        "settings": {**engine_facts(engine), "command": list(command)},
        "machine": machine_facts(),
        "result": dict(result),
    }


def model_facts(name: str, config: ModelConfig) -> dict[str, object]:
    """The name as typed, the number of parameters (a tied head counts once) and the config in our
    words.
    """
    return {"name": name, "parameters": num_parameters(config), "config": config.facts()}


def num_parameters(config: ModelConfig) -> int:
    """Parameters of the whole model; a head tied to the embedding is counted once."""
    return sum(spec.elements for spec in make_layout(config, not config.tied).tensors)


def engine_facts(engine: Engine) -> dict[str, object]:
    """How the model runs: ranks, device, dtype, quantisation, longest sequence, threads requested."""
    return {
        "world_size": engine.world_size,
        "device": engine.hardware.label,
        "dtype": WORD_OF_DTYPE[engine.dtype],
        "quant": engine.config.quant,
        "max_len": engine.max_len,
        "threads": engine.config.threads,
    }


def machine_facts() -> dict[str, object]:
    """The machine as doctor sees it, without what changes between runs."""
    report = examine(Path.cwd())
    return {
        "processor": report.processor.name,
        "kind": report.processor.kind,
        "cores": report.processor.usable_cores,
        "memory_bytes": report.memory_total_bytes,
        "accelerators": [device.model for device in report.devices if device.name != HOST],
        "system": report.system,
        "python": report.python,
        "torch": report.packages["torch"],
    }


def read(path: Path, *kinds: str) -> dict[str, object]:
    """The document in a file; UsageError unless it is a result of one of these kinds and of this
    version.
    """
    document = parsed_json(contents(path), str(path), "name another file")
    marks = ("format", "version", "kind")
    found = [document.get(mark) for mark in marks] if isinstance(document, dict) else []
    known = [[FORMAT, VERSION, kind] for kind in kinds]
    if not isinstance(document, dict) or found not in known or found[1] is True:
        wanted = f"a {' or '.join(kinds)} result of gyrfalcon in {path}"
        raise UsageError(wanted, _described(document), "name another file")
    if not isinstance(document.get("result"), dict):
        got = shown(document.get("result"))
        raise UsageError(f"an object result in {path}", got, "name another file")
    return document


def findings(document: Mapping[str, object], path: Path) -> Fields:
    """The `result` of a document that read() found in the file `path`."""
    found = document["result"]
    assert isinstance(found, dict)
    return Fields(found, f"the result in {path}", LARGEST)


def _described(document: object) -> str:
    """What a foreign JSON value is, in a few words."""
    if not isinstance(document, dict):
        return f"JSON without an object: {shown(document)}"
    if document.get("format") == FORMAT:
        kind, version = document.get("kind"), document.get("version")
        return f"one of kind {shown(kind)} and version {shown(version)}"
    keys = [shown(key) for key in list(document)[:SHOWN_KEYS]]
    more = ", …" if len(document) > SHOWN_KEYS else ""
    return f"a JSON object with {', '.join(keys)}{more}" if keys else "an empty JSON object"


def write(document: Mapping[str, object], path: Path) -> None:
    """Writes the document atomically."""
    write_atomically(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Replaces the file's text; a kill leaves the old text or the new."""
    replace_file(path, text.encode(errors="backslashreplace"))
