"""The speed sweep: its formulas on made-up times, its files byte for byte, its way through kills."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.batch import Batch
from gyrfalcon.checkpoint.hub import NESTLING
from gyrfalcon.cli.main import main
from gyrfalcon.errors import GyrfalconError, UsageError
from gyrfalcon.files.json_fields import Fields
from gyrfalcon.files.output import OutputFile, open_output
from gyrfalcon.measure.passage import passage_ids, prompt_rows
from gyrfalcon.measure.roofline import Deployment, MachineLimits, decode_bytes, prefill_flops
from gyrfalcon.measure.speed.baseline import baselines, compare
from gyrfalcon.measure.speed.bench import Bench, generate, with_percent
from gyrfalcon.measure.speed.cases import Case, Figures, Generation, Row, averages, figures_of
from gyrfalcon.measure.speed.files import Files, Sweep, csv_text
from gyrfalcon.measure.speed.rows import read_row
from gyrfalcon.measure.speed.table import describe
from gyrfalcon.request import Chunk
from gyrfalcon.text.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("brief_limits")
HEADER = (
    "Batch, MaxSeqLen, InputSeqLen(Encoding), OutputSeqLen(Decoding), ResponseTime(ms), "
    "FirstTokenTime(ms), TimePerTokens(ms), TokensPerSecond(ms)\n"
)
QUICK = ("--repeats", "1")


@pytest.fixture(scope="module")
def model() -> Path:
    return NESTLING


def speed(model: Path, *options: object) -> int:
    return main(["speed", str(model), *map(str, options)])


def rows_of(file: Path) -> list[dict[str, object]]:
    document = json.loads(file.read_text())
    rows: list[dict[str, object]] = document["result"]["rows"]
    return rows


def cases_of(file: Path) -> list[tuple[object, object]]:
    return [(row["input_len"], row["output_len"]) for row in rows_of(file)]


def generation(*arrivals: float, ends: float | None = None) -> Generation:
    """One sequence whose tokens came at these seconds."""
    return Generation(arrivals[-1] if ends is None else ends, (arrivals,))


def figures(response_ms: float, first_ms: float, ms: float) -> Figures:
    return Figures(
        response_ms=response_ms,
        first_token_ms=first_ms,
        time_per_token_ms=ms,
        tokens_per_second=1000 / ms,
        tokens_per_second_of_batch=1000 / ms,
        tokens_per_second_per_device=1000 / ms,
        inter_token_p50_ms=ms,
        inter_token_p90_ms=ms,
        inter_token_p99_ms=ms,
        peak_memory_bytes=[1_500_000_000, 10],
    )


def slow_down(raw: dict[str, Any], times: float) -> None:
    """Makes a measured row of a result file one of a slower run."""
    for name, value in raw.items():
        if "_ms" in name:
            raw[name] = [one * times for one in value] if isinstance(value, list) else value * times
        elif name.startswith("tokens_per_second"):
            raw[name] = value / times


def row(input_len: int, output_len: int, times: Figures | None) -> Row:
    reason = None if times else "the KV cache holds 16 tokens, 32 are needed"
    return Row(Case(1, input_len, output_len), 2048, times, reason)


# ---- formulas ----


def test_the_guides_formulas_on_times_made_up() -> None:
    case = Case(batch=1, input_len=32, output_len=5)
    whole = [generation(0.1, 0.2, 0.3, 0.4, 0.5)]
    found = figures_of(case, [generation(0.08)], whole, num_devices=1)
    assert found.first_token_ms == pytest.approx(80)
    assert found.response_ms == pytest.approx(500)
    assert found.time_per_token_ms == pytest.approx((500 - 80) / 4)
    assert found.tokens_per_second == pytest.approx(1000 / 105)


def test_repeats_count_with_their_medians() -> None:
    case = Case(batch=1, input_len=32, output_len=2)
    whole = [generation(0.1, last) for last in (0.9, 0.2, 0.3)]
    first = [generation(last) for last in (0.1, 0.7, 0.2)]
    found = figures_of(case, first, whole, num_devices=1)
    assert found.response_ms == pytest.approx(300)
    assert found.first_token_ms == pytest.approx(200)
    assert found.response_ms_of_each == pytest.approx([900, 200, 300])
    assert found.inter_token_ms == pytest.approx([200])  # of the repeat that took 300 ms


def test_percentiles_are_of_the_gaps_between_tokens_of_all_sequences() -> None:
    case = Case(batch=2, input_len=8, output_len=3)
    one = Generation(0.5, ((0.1, 0.2, 0.4), (0.2, 0.5, 0.5)))
    found = figures_of(case, [generation(0.1)], [one], num_devices=2)
    assert found.inter_token_p50_ms == pytest.approx(150)  # of 0, 100, 200 and 300
    assert found.inter_token_p90_ms == pytest.approx(270)
    assert found.inter_token_p99_ms == pytest.approx(297)
    assert found.tokens_per_second_of_batch == pytest.approx(2 * found.tokens_per_second)
    assert found.tokens_per_second_per_device == pytest.approx(found.tokens_per_second)


def test_a_slow_first_token_makes_no_negative_rate() -> None:
    case = Case(batch=1, input_len=8, output_len=3)
    found = figures_of(case, [generation(0.9)], [generation(0.1, 0.12, 0.2)], num_devices=1)
    assert found.time_per_token_ms == pytest.approx(20)  # the shortest gap


def test_both_averages_of_the_rate_are_given() -> None:
    rows = [row(32, 32, figures(100, 10, 10)), row(32, 64, figures(300, 30, 40)), row(64, 64, None)]
    found = averages(rows)
    assert (found["cases"], found["oom"]) == (2, 1)
    assert (found["response_ms"], found["first_token_ms"]) == (200, 20)
    assert found["tokens_per_second_of_mean_ms"] == pytest.approx(1000 / 25)
    assert found["mean_tokens_per_second"] == pytest.approx((100 + 25) / 2)


def test_percentages_are_of_the_measured_limits(model: Path) -> None:
    with Engine(EngineConfig(model=str(model), max_len=128)) as engine:
        layout = Deployment(engine.model_config, 1, 4, "none", on_cards=False)
    done = with_percent(row(32, 8, figures(100, 20, 10)), layout, MachineLimits(1e10, 1e12)).figures
    assert done is not None
    needed = decode_bytes(layout, batch=1, context=32 + 8 / 2)
    assert done.decode_percent_of_limit == pytest.approx(100 * needed / 1e10 / 0.010)
    flops = prefill_flops(layout, batch=1, input_len=32)
    assert done.prefill_percent_of_limit == pytest.approx(100 * flops / 1e12 / 0.020)


# ---- prompts and generations ----


def test_prompts_have_the_asked_length_and_begin_at_different_places() -> None:
    rows = prompt_rows(range(10), length=4, rows=2)
    assert rows == [[0, 1, 2, 3], [5, 6, 7, 8]]


def test_a_text_that_ends_begins_again() -> None:
    assert prompt_rows(range(3), length=8, rows=1) == [[0, 1, 2, 0, 1, 2, 0, 1]]


def test_the_passage_gives_1024_tokens_of_real_text(data_tokenizer: Tokenizer) -> None:
    ids = passage_ids(data_tokenizer)
    assert len(ids) > 4096
    assert data_tokenizer.decode(ids[:8]).startswith("There was no possibility of taking a walk")


def test_a_tokenizer_that_makes_nothing_of_the_passage_is_refused(tmp_path: Path) -> None:
    deaf = tokenizers.Tokenizer(models.BPE({"<|endoftext|>": 0, "word": 1}, merges=[]))
    deaf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    deaf.decoder = decoders.ByteLevel()
    deaf.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UsageError, match="makes no tokens"):
        passage_ids(Tokenizer.load(tmp_path))


@pytest.fixture
def data_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.load(request.getfixturevalue("data")("falcon-tokenizer"))


def test_end_of_text_does_not_end_a_timed_generation(model: Path, tmp_path: Path) -> None:
    ending = tmp_path / "always-ends"
    shutil.copytree(model, ending)
    weights = {name: w.zero_() for name, w in load_file(ending / "model.safetensors").items()}
    weights["transformer.ln_f.bias"].fill_(1)
    weights["transformer.word_embeddings.weight"][11] = 1
    save_file(weights, ending / "model.safetensors", metadata={"format": "pt"})
    with Engine(EngineConfig(model=str(ending), max_len=64)) as engine:
        assert engine.generate([[5, 6]])[0].output_ids == (11,)
        timed = generate(engine, [[5, 6], [7, 8, 9]], max_new_tokens=12)
    assert [len(times) for times in timed.arrivals] == [12, 12]
    assert list(timed.arrivals[0]) == sorted(timed.arrivals[0])
    assert timed.seconds >= timed.arrivals[0][-1]


# ---- files ----


def test_the_csv_is_the_guides_byte_for_byte() -> None:
    rows = [row(32, 64, figures(9204.322, 92.83104, 27.0287486)), row(1024, 1024, None)]
    assert csv_text(rows) == (
        HEADER + "1, 2048, 32, 64, 9204.3220, 92.8310, 27.0287, 36.9976\n"
        "1, 2048, 1024, 1024, oom, oom, oom, oom\n"
    )


def test_a_row_comes_back_from_json_as_it_was() -> None:
    times = figures_of(Case(1, 32, 3), [generation(0.1)], [generation(0.1, 0.2, 0.4)], 1)
    with_limits = replace(times, decode_percent_of_limit=50.0, prefill_percent_of_limit=9.0)
    for one, has_limits in (
        (row(32, 3, times), False),
        (row(32, 3, with_limits), True),
        (row(32, 32, None), True),
    ):
        raw = Fields(json.loads(json.dumps(one.to_json())), "a test")
        assert read_row(raw, 1, has_limits) == one
        if one.figures:
            with pytest.raises(GyrfalconError, match="percent_of_limit"):
                read_row(raw, 1, not has_limits)


def test_a_csv_gets_its_json_beside_it(tmp_path: Path) -> None:
    def at(name: str) -> OutputFile:
        return open_output(str(tmp_path / name), "-f")

    csv, json = tmp_path / "a/out.csv", tmp_path / "b.json"
    assert Files.select(at("a/out.csv"), None) == Files(csv, tmp_path / "a/out.json")
    assert Files.select(at("a/out.csv"), at("b.json")) == Files(csv, json)
    assert Files.select(None, None) == Files(None, None)
    with pytest.raises(UsageError, match=r"out\.json"):
        Files.select(at("out.json"), None)


def test_only_regular_files_are_written_several_times(tmp_path: Path) -> None:
    csv = open_output(str(tmp_path / "out.csv"), "-f")
    null = open_output("/dev/null", "--json")
    assert Files.select(csv, null) == Files(csv.file, tmp_path / "out.json")
    assert Files.select(null, None) == Files(None, None)


@pytest.mark.slow
def test_the_command_writes_csv_json_and_table(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "out.csv"
    assert speed(model, "-f", table, "--in", "8,16", "--out", "2,3", "-w", 2, *QUICK) == 0
    lines = table.read_text().splitlines(keepends=True)
    assert lines[0] == HEADER
    assert [line.split(", ")[:4] for line in lines[1:]] == [
        ["1", "4096", *pair] for pair in (("8", "2"), ("8", "3"), ("16", "2"), ("16", "3"))
    ]
    document = json.loads((tmp_path / "out.json").read_text())
    assert (document["kind"], document["settings"]["world_size"]) == ("speed", 2)
    first = document["result"]["rows"][0]
    assert len(first["peak_memory_bytes"]) == 2
    assert first["decode_percent_of_limit"] > 0
    assert first["prefill_percent_of_limit"] > 0
    assert first["time_per_token_ms"] == pytest.approx(
        max(first["response_ms"] - first["first_token_ms"], min(first["inter_token_ms"])), abs=1e-3
    )
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:3] == ["batch", "in", "out"]
    assert "mean over 4 cases" in out


@pytest.mark.slow
def test_several_prompts_at_once_are_a_batch(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--batch", 3, "--in", "20", "--out", "4", "--json", "-", *QUICK)
    assert speed(model, *options) == 0
    document = json.loads(capsys.readouterr().out)
    only = document["result"]["rows"][0]
    assert (only["batch"], only["status"]) == (3, "measured")
    assert only["tokens_per_second_of_batch"] == pytest.approx(3 * only["tokens_per_second"])


# ---- going on ----


@pytest.mark.slow
def test_a_finished_case_is_not_measured_again(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, file = tmp_path / "out.csv", tmp_path / "out.json"
    assert speed(model, "-f", table, "--in", "8", "--out", "2,3", *QUICK) == 0
    before = rows_of(file)
    assert speed(model, "-f", table, "--in", "8,16", "--out", "3", *QUICK) == 0
    after = rows_of(file)
    assert after[:2] == before
    assert cases_of(file) == [(8, 2), (8, 3), (16, 3)]
    assert "1 of 2 cases are in" in capsys.readouterr().err


KILLED = """
import os, signal, sys
from gyrfalcon.cli.main import main
from gyrfalcon.device import cpu, rates
from gyrfalcon.measure.speed.files import Files

rates.LEAST_ROUNDS, rates.ROUNDS_SECONDS, rates.PRODUCT_SIZES, cpu.READ_BYTES = 1, 0, (512,), 4 << 20

def write(self, head, sweep):
    whole(self, head, sweep)
    if len(sweep.in_order) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

whole, Files.write = Files.write, write
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_stopped(model: Path, tmp_path: Path) -> None:
    table, file = tmp_path / "out.csv", tmp_path / "out.json"
    words = ["speed", str(model), "-f", str(table), "--in", "8,16,24", "--out", "2,40", *QUICK]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *words],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == -signal.SIGKILL
    killed = rows_of(file)
    assert len(killed) == 2
    assert table.read_text().startswith(HEADER)
    assert main(words) == 0
    assert rows_of(file)[: len(killed)] == killed
    assert cases_of(file) == [(n, out) for n in (8, 16, 24) for out in (2, 40)]
    assert table.read_text().count("\n") == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.json"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "named"),
    [(("--repeats", "2"), "--repeats 1"), (("-w", "2", *QUICK), "-w 1")],
    ids=["repeats", "ranks"],
)
def test_results_of_another_sweep_are_not_overwritten_unasked(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: Sequence[str],
    named: str,
) -> None:
    words = ("-f", tmp_path / "out.csv", "--in", "8", "--out", "2")
    assert speed(model, *words, *QUICK) == 0
    before = (tmp_path / "out.json").read_text()
    assert speed(model, *words, *changed) == 2
    error = capsys.readouterr().err
    assert f"another, which had {named};" in error
    assert "--overwrite" in error
    assert (tmp_path / "out.json").read_text() == before
    assert speed(model, *words, *changed, "--overwrite") == 0
    assert (tmp_path / "out.json").read_text() != before


def test_a_table_without_its_json_is_not_overwritten_unasked(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "out.csv"
    table.write_text("mine\n")
    assert speed(model, "-f", table, "--in", "8", "--out", "2", *QUICK) == 2
    assert "a table without its JSON" in capsys.readouterr().err
    assert table.read_text() == "mine\n"


# ---- limits ----


def test_lengths_beyond_the_models_positions_are_refused_naming_the_largest(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "out.csv"
    assert speed(model, "-f", table, "--in", "32,3072", "--out", "32,1025") == 2
    err = capsys.readouterr().err
    assert "at most 4096 tokens together" in err
    assert "got 3072 + 1025" in err
    assert "ready" not in err
    assert not table.exists()


@pytest.mark.slow
def test_the_models_last_position_can_be_measured(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    assert speed(model, "--json", file, "--in", "4092", "--out", "4", *QUICK) == 0
    assert rows_of(file)[0]["status"] == "measured"


@pytest.mark.slow
def test_a_case_that_the_cache_cannot_hold_is_recorded_as_oom(model: Path, tmp_path: Path) -> None:
    table, file = tmp_path / "out.csv", tmp_path / "out.json"
    block = 16 * 6 * 2 * 2 * 64 * 2  # tokens, layers, KV heads, k and v, head_dim, bf16
    options = ("--cache-memory", 10 * block, "--in", "16,160,32", "--out", "8", *QUICK)
    assert speed(model, "-f", table, *options) == 0
    assert [one["status"] for one in rows_of(file)] == ["measured", "measured", "oom"]
    assert rows_of(file)[2]["reason"] == "the KV cache holds 160 tokens, 176 are needed"
    assert table.read_text().endswith("1, 160, 160, 8, oom, oom, oom, oom\n")


@pytest.mark.slow
def test_the_sweep_goes_on_after_the_allocator_gave_up(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Batch.build

    def scarce(chunks: Sequence[Chunk], block_size: int) -> Batch:
        if chunks[0].stop - chunks[0].start > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return build(chunks, block_size)

    monkeypatch.setattr(Batch, "build", scarce)
    file = tmp_path / "out.json"
    assert speed(model, "--json", file, "--in", "8,24,16", "--out", "2", *QUICK) == 0
    assert [one["status"] for one in rows_of(file)] == ["measured", "measured", "oom"]
    assert "Tried to allocate" in str(rows_of(file)[2]["reason"])


# ---- baselines ----


def test_the_guides_figures_are_the_baseline_named_guide() -> None:
    ours = [row(32, 32, figures(9204.322 / 2, 92.83104, 27.0287486 / 4))]
    npu, gpu = baselines("guide", "falcon-40b")
    found = compare(ours, npu, "falcon-40b")["averages"]
    assert found == pytest.approx(
        {
            "response_ms": 2,
            "first_token_ms": 1,
            "time_per_token_ms": 4,
            "mean_tokens_per_second": 4000 / 27.0287486 / 37.0206184,
        }
    )
    assert set(compare(ours, gpu, "falcon-40b")["averages"]) == {  # type: ignore[call-overload]
        "response_ms",
        "first_token_ms",
        "time_per_token_ms",
        "tokens_per_second_of_mean_ms",
    }


def test_the_figures_of_7b_are_not_called_the_guides() -> None:
    found = baselines("guide", "falcon-7b")
    assert [one.averages["time_per_token_ms"] for one in found] == [17.24, 10.73]
    assert all("later table of the guide's publisher" in one.name for one in found)


def test_what_is_not_comparable_with_the_guide_is_said() -> None:
    npu, _ = baselines("guide", "falcon-40b")
    lengths = (32, 64, 128, 256, 512, 1024)
    whole = [row(i, o, figures(100, 10, 1)) for i in lengths for o in lengths]
    assert compare(whole, npu, "falcon-40b")["warnings"] == []
    other = compare(whole, npu, "falcon-7b")["warnings"]
    assert other == ["another model: falcon-40b there, falcon-7b here"]
    for rows, got in (
        (whole[:1], "1 of them here"),
        ([*whole[:35], row(1024, 1024, None)], "35 of them here"),
        ([*whole, row(8, 8, figures(100, 10, 1))], "36 of them and 1 others here"),
    ):
        partial = compare(rows, npu, "falcon-40b")["warnings"]
        assert partial == [f"other cases: means over 36 there, {got}"]


def test_a_small_sweep_of_another_model_is_not_put_beside_the_guide_without_a_warning(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--in", "8", "--out", "2", "--baseline", "guide", *QUICK)
    assert speed(model, *words, "--json", "-") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)["result"]["baselines"]
    assert len(found) == 2
    for one in found:
        assert [warning.split(":")[0] for warning in one["warnings"]] == [
            "another model",
            "other cases",
        ]
        for warning in one["warnings"]:
            assert f"WARNING: not comparable with {one['name']}: {warning}\n" in err


@pytest.mark.slow
def test_a_result_is_compared_with_another_case_by_case(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, ours = tmp_path / "theirs.json", tmp_path / "ours.json"
    assert speed(model, "--json", file, "--in", "8", "--out", "2,3", *QUICK) == 0
    document = json.loads(file.read_text())
    for one in document["result"]["rows"]:
        slow_down(one, 3)
    ours.write_text(file.read_text())
    file.write_text(json.dumps(document))
    words = ("--json", ours, "--in", "8", "--out", "2,3,4", "--baseline", file, *QUICK)
    assert speed(model, *words) == 0
    (found,) = json.loads(ours.read_text())["result"]["baselines"]
    assert found["cases"] == 2
    assert found["averages"]["response_ms"] == pytest.approx(3)
    assert found["of_each"][1] == {
        "batch": 1,
        "input_len": 8,
        "output_len": 3,
        "response_ms": pytest.approx(3),
        "first_token_ms": pytest.approx(3),
        "time_per_token_ms": pytest.approx(3),
    }
    assert "times as fast as" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{}", "no JSON", '{"format": "gyrfalcon-result"}'])
def test_a_baseline_that_is_no_speed_result_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (tmp_path / "other.json").write_text(content)
    assert speed(model, "--baseline", tmp_path / "other.json") == 2
    assert "other.json" in capsys.readouterr().err


def test_a_case_whose_memory_could_not_be_asked_for_is_shown_without() -> None:
    rows = {
        one.case: one for one in [row(32, 64, replace(figures(500, 20, 12), peak_memory_bytes=[]))]
    }
    assert describe(Sweep(3, None, rows)).splitlines()[1].split()[-1] == "12.00"


def test_the_table_shows_each_case_and_says_what_the_percentages_are_of() -> None:
    good = replace(
        figures(500, 20, 12.345), decode_percent_of_limit=45.67, prefill_percent_of_limit=8.0
    )
    rows = {one.case: one for one in (row(32, 64, good), row(64, 64, None))}
    lines = describe(Sweep(3, MachineLimits(25.6e9, 2e12), rows)).splitlines()
    assert lines[1].split() == (
        "1 32 64 20.0 500.0 12.35 81.00 12.35 12.35 12.35 1.50 45.7 % 8.0 %".split()
    )
    assert lines[2].split() == "1 64 64 oom oom oom oom".split()
    assert "25.6 GB/s" in lines[3]
    assert lines[4].startswith("mean over 1 case, 1 out of memory: response 500.00 ms")


def test_the_share_of_an_instructions_peak_stands_beside_that_of_float32() -> None:
    times = figures_of(Case(1, 32, 3), [generation(0.1)], [generation(0.1, 0.2, 0.4)], 1)
    good = replace(times, decode_percent_of_limit=45.0, prefill_percent_of_limit=8.0)
    found = MachineLimits(25.6e9, 6e12, "tdpbf16ps", 0.5e12)
    sweep = Sweep(1, found, {(one := row(32, 3, good)).case: one})
    lines = describe(sweep).splitlines()
    assert lines[0].split()[-3:] == ["prefill", "of", "float32"]
    assert lines[1].split()[-4:] == ["8.0", "%", "96.0", "%"]
    assert "tdpbf16ps's peak, 6 TOP/s, and of float32 multiply-adds, 0.5 TFLOP/s" in lines[2]
    again = Sweep.from_json(Fields(json.loads(json.dumps(sweep.to_json())), "result"))
    assert again.limits == found


def test_each_percentile_of_the_gaps_is_shown_in_its_own_column() -> None:
    times = replace(
        figures(10, 1, 1), inter_token_p50_ms=1.5, inter_token_p90_ms=2.5, inter_token_p99_ms=3.5
    )
    one = row(32, 64, times)
    heading, shown = describe(Sweep(1, None, {one.case: one})).splitlines()[:2]
    ends = [heading.index(name) + len(name) for name in ("p50 ms", "p90 ms", "p99 ms")]
    assert [shown[:end].split()[-1] for end in ends] == ["1.50", "2.50", "3.50"]


def test_what_the_first_generation_alone_takes_is_not_timed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that is compiled in the very first step, say: here 1000 s on a clock of our own."""
    now = 0.0
    monkeypatch.setattr("gyrfalcon.measure.speed.bench.perf_counter", lambda: now)
    with Engine(EngineConfig(model=str(model), max_len=64)) as engine:
        step, cost = engine.step, [1000.0]

        def slow_at_first() -> object:
            nonlocal now
            now += cost.pop() if cost else 1.0
            return step()

        monkeypatch.setattr(engine, "step", slow_at_first)
        bench = Bench(engine, list(range(20, 40)))
        found = bench.measure(Case(1, 8, 3), 1, lambda tokens: None).figures
    assert found is not None
    assert (found.first_token_ms, found.response_ms) == (1000, 3000)


def test_of_two_sweeps_at_once_into_one_file_none_replaces_the_other(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*QUICK, "-f", tmp_path / "speed.csv", "--in", "4")
    measure = Bench.measure

    def meanwhile(*arguments: object) -> Row:
        monkeypatch.setattr(Bench, "measure", measure)
        assert speed(model, *words, "--out", "2") == 0  # another run begins and ends
        return measure(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Bench, "measure", meanwhile)
    assert speed(model, *words, "--out", "3") == 2
    assert "got one that another run has written since" in capsys.readouterr().err
    assert cases_of(tmp_path / "speed.json") == [(4, 2)]
