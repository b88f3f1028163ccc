"""Files that lie about what they hold: sizes that cannot be, memory that the file does not have, commands to
a terminal. Each is one line, and costs no more than reading the file.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint

from gyrfalcon.checkpoint.manifest import Manifest
from gyrfalcon.checkpoint.pickle_file import PickleFile
from gyrfalcon.cli.main import main
from gyrfalcon.console.format import printable
from gyrfalcon.cut.cut import cut
from gyrfalcon.cut.verify import verify
from gyrfalcon.errors import CheckpointError

SMALL: dict[str, Any] = dict(
    hidden_size=64, num_attention_heads=8, num_kv_heads=2, num_hidden_layers=1
)
Change = Callable[[dict[str, Any]], object]  # of a tensor in a manifest


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("lies") / "hf", "40b", **SMALL)


def ends_at(stop: int) -> Change:
    def change(tensor: dict[str, Any]) -> None:
        tensor["shape"][tensor["dim"]] = stop
        tensor["parts"][-1]["ranges"][-1][1] = stop

    return change


LIES: dict[str, Change] = {
    "more rows than can be counted": ends_at(10**30),
    "more elements than can be counted": ends_at(2**62),
    "a range before the first row": lambda tensor: tensor["parts"][0]["ranges"][0].__setitem__(
        0, -3
    ),
    "a range that ends before it begins": lambda tensor: tensor["parts"][0]["ranges"].append(
        [9, 2]
    ),
    "a dimension that is not there": lambda tensor: tensor.update(dim=5),
    "a dimension counted from the end": lambda tensor: tensor.update(dim=-2),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_signed_manifest_that_lies_is_refused(lie: str, checkpoint: Path, tmp_path: Path) -> None:
    cut(checkpoint, tmp_path / "cut", 2)
    path = tmp_path / "cut" / "manifest.json"
    raw = json.loads(path.read_text())
    LIES[lie](next(one for one in raw["tensors"].values() if one["dim"] is not None))
    del raw["sha256"]
    checksum = hashlib.sha256(json.dumps(raw).encode()).hexdigest()
    path.write_text(json.dumps(raw | {"sha256": checksum}, indent=1) + "\n")
    with pytest.raises(CheckpointError, match=r"a whole .*manifest\.json"):
        Manifest.read(tmp_path / "cut")
    assert len(verify(tmp_path / "cut").faults) == 1


def saved(state: object) -> bytes:
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def compressed(raw: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w", 8) as new:
        for entry in old.infolist():
            filler = bytes(1 << 20) if entry.filename.endswith("data.pkl") else b""
            new.writestr(entry.filename, old.read(entry) + filler)
    return out.getvalue()


def test_a_pickle_that_unpacks_to_more_than_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(saved({"a": torch.ones(3)}))
    assert PickleFile(path).read("a").tolist() == [1, 1, 1]
    path.write_bytes(compressed(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"got a compressed .*data\.pkl"):
        PickleFile(path)


def test_a_tensor_of_more_numbers_than_the_file_has_is_not_computed_with(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(saved({"a": torch.ones(1).expand(1 << 40), "b": torch.ones(2, 3).t()}))
    file = PickleFile(path)
    assert list(file.names()) == ["b"]
    assert file.odd == {"a": f"a tensor of {1 << 40} numbers, of which 1 are stored"}


def test_a_foreign_name_commands_no_terminal(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printable("a\x1b[2J\n b\u202e\u200bé") == r"a\x1b[2J b\u202e\u200bé"
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    raw = (checkpoint / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    for name in ("transformer.h.\x1b[2J", "vision.\x1b[2J"):  # refused, and left aside with a note
        odd = {"dtype": "F32", "shape": [0], "data_offsets": [len(raw) - end] * 2}
        header = json.dumps(json.loads(raw[8:end]) | {name: odd}).encode()
        content = len(header).to_bytes(8, "little") + header + raw[end:]
        (folder / "model.safetensors").write_bytes(content)
        main(["inspect", str(folder)])
        shown = "".join(capsys.readouterr())
        assert "\x1b" not in shown
        assert r"\x1b[2J" in shown
