"""The commands on checkpoints and cuts, as typed: what they print, what they write, what they exit with."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint

from gyrfalcon.cli.main import main
from gyrfalcon.console.format import counted, shown_bytes


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("hf") / "tiny", "7b", dtype=torch.bfloat16)


@pytest.fixture
def cut(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    target = tmp_path / "cut"
    assert main(["cut", str(checkpoint), str(target), "-w", "2"]) == 0
    capsys.readouterr()
    return target


def damage(cut: Path) -> Path:
    """Flips one bit in the middle of rank 1's weights."""
    file = next((cut / "part_model/1").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return file


def test_cut_ends_with_the_line_that_scripts_look_for(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cut", str(checkpoint), str(tmp_path / "cut"), "-w", "3"]) == 0
    out = capsys.readouterr().out
    assert "save succcessfully" in out.splitlines()[-1]
    assert sorted(path.name for path in (tmp_path / "cut/part_model").iterdir()) == ["0", "1", "2"]


def test_cut_takes_the_dtype_and_shard_size(checkpoint: Path, tmp_path: Path) -> None:
    file, target = tmp_path / "cut.json", tmp_path / "cut"
    options = ["--dtype", "fp32", "--max-shard-size", "6MB", "--json", str(file)]
    assert main(["cut", str(checkpoint), str(target), "-w", "1", *options]) == 0
    summary = json.loads(file.read_text())
    assert (summary["dtype"], summary["world_size"], summary["target"]) == (
        "float32",
        1,
        str(target),
    )
    assert len(list((target / "part_model/0").glob("*.safetensors"))) > 1


def test_cut_refuses_a_folder_that_is_no_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cut", str(tmp_path), str(tmp_path / "cut"), "-w", "2"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("gyrfalcon: error: wanted ")
    assert err.count("\n") == 1


def test_verify_accepts_a_fresh_cut(cut: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(cut)]) == 0
    assert "no faults" in capsys.readouterr().out


def test_verify_names_the_damaged_file_and_exits_1(
    cut: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = damage(cut)
    assert main(["verify", str(cut)]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"fault: {file.relative_to(cut)}: ")
    assert err.startswith("gyrfalcon: error: wanted no faults, got 1; ")


def test_verify_gives_its_faults_as_json_alone(
    cut: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(cut)
    assert main(["verify", str(cut), "--json", "-"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert len(report["faults"]) == 1


@pytest.mark.parametrize("words", [["verify"], ["recut", "-w", "2", "new"], ["merge", "new"]])
def test_a_misspelt_cut_is_answered_with_the_one_beside_it(
    cut: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    (cut.parent / "falcon-40b-4").mkdir()
    wrong = cut.parent / "falcon-40-4"
    assert main([words[0], str(wrong), *words[1:]]) == 2
    wanted = f"wanted a cut in {wrong}, got no such folder; did you mean {cut.parent}/falcon-40b-4?"
    assert capsys.readouterr().err == f"gyrfalcon: error: {wanted}\n"


def test_recut_and_merge_write_what_they_say(cut: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again, merged = cut.with_name("again"), cut.with_name("merged")
    assert main(["recut", str(cut), str(again), "-w", "3"]) == 0
    assert (again / "part_model/2").is_dir()
    assert main(["merge", str(again), str(merged)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"merged: {merged}"
    assert (merged / "config.json").is_file()


def test_merging_another_dtype_needs_an_option(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "cut"
    main(["cut", str(checkpoint), str(target), "-w", "2", "--dtype", "fp16"])
    assert main(["merge", str(target), str(tmp_path / "merged")]) == 2
    assert "--dequantise" in capsys.readouterr().err
    assert main(["merge", str(target), str(tmp_path / "merged"), "--dequantise"]) == 0
    assert "note: " in capsys.readouterr().out


def test_a_folder_that_holds_something_is_only_replaced_when_asked(
    cut: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = cut.with_name("taken")
    shutil.copytree(cut, taken)
    assert main(["recut", str(cut), str(taken), "-w", "3"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["recut", str(cut), str(taken), "-w", "3", "--overwrite"]) == 0
    assert main(["verify", str(taken)]) == 0


def test_inspect_lists_every_tensor_and_each_ranks_sum(
    cut: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(cut)]) == 0
    out = capsys.readouterr().out
    assert "transformer.h.1.self_attention.query_key_value.weight [584, 568] bfloat16\n" in out
    assert "  rank 0  rows 0:280 + 568:584  " in out  # 71 heads of 8: 35 on rank 0; then k and v
    assert out.splitlines()[-1].startswith("rank 1 holds ")


def test_inspect_adds_up(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "inspect.json"
    assert main(["inspect", str(checkpoint), "-w", "3", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    sums = [sum(row["rank_bytes"][rank] for row in found["tensors"]) for rank in range(3)]
    assert found["world_size"] == 3
    assert found["rank_bytes"] == sums
    rows = next(
        row for row in found["tensors"] if row["name"].endswith("h.0.mlp.dense_h_to_4h.weight")
    )
    assert [part for rank in rows["ranges"] for part in rank] == [
        [0, 768],
        [768, 1536],
        [1536, 2272],
    ]


@pytest.mark.parametrize(
    ("num_bytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (83_671_941_120, "83.7 GB")],
)
def test_sizes_are_shown_in_powers_of_1000(num_bytes: int, shown: str) -> None:
    assert shown_bytes(num_bytes) == shown


@pytest.mark.parametrize(("count", "told"), [(0, "0 files"), (1, "1 file"), (2, "2 files")])
def test_one_is_no_plural(count: int, told: str) -> None:
    assert counted(count, "file") == told
