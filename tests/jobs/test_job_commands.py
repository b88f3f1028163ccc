"""`gyrfalcon score` and `gyrfalcon generate -o`: what they write, what they refuse, how they go on."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import make_engine, small
from job_fixtures import write_rows, written
from tokenizers_ import make_tokenizer

from gyrfalcon import Engine, SamplingParams
from gyrfalcon.cli.main import main
from gyrfalcon.jobs import source as source_module
from gyrfalcon.jobs.task import row_seed

PROMPTS: list[dict[str, Any]] = [
    {"id": "nest", "prompt": "A gyrfalcon nests", "continuation": " on cliffs"},
    {"id": 7, "prompt": "the bird "},
    {"prompt": "Once upon a time", "continuation": " there was a child"},
    {"id": "7", "prompt": [30, 31, 32, 33], "continuation": [34, 35]},
    {"id": "ids", "prompt": [40, 41, 42]},
    {"id": "blank", "prompt": "the wind ", "continuation": "turned"},
]
IDS = ["nest", 7, "prompts.jsonl:3", "7", "ids", "blank"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(small(tmp_path_factory.mktemp("model")))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "prompts.jsonl", PROMPTS)


def score(model: Path, source: Path, out: Path, *more: str) -> int:
    return main(["score", str(source), str(out), "-m", str(model), "--max-len", "64", *more])


def generate(model: Path, source: Path, out: Path, *more: str) -> int:
    words = ["generate", str(model), "--prompt-file", str(source), "-o", str(out)]
    return main([*words, "--max-len", "64", "--max-new-tokens", "6", *more])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line, and that no model was loaded before it."""
    err = capsys.readouterr().err
    assert "ready: " not in err
    return err.splitlines()[-1]


def reference(engine: Engine, ids: list[int], first: int) -> tuple[list[float], bool]:
    """Log-probabilities of the tokens from `first` on and whether each is the most likely, from logits."""
    logits = engine.logits(torch.tensor([ids]))[0].double()
    logprobs = logits.log_softmax(-1)
    scored = range(first, len(ids))
    greedy = all(int(logits[place - 1].argmax()) == ids[place] for place in scored)
    return [float(logprobs[place - 1, ids[place]]) for place in scored], greedy


def test_scores_are_those_of_the_logits(model: Path, prompts: Path, tmp_path: Path) -> None:
    assert score(model, prompts, tmp_path / "out", "--part-rows", "4") == 0
    rows = written(tmp_path / "out")
    assert [row["id"] for row in rows] == IDS
    with make_engine(model) as engine:
        encode = engine.tokenizer.encode
        pairs = [
            (encode("A gyrfalcon nests on cliffs"), len(encode("A gyrfalcon nests"))),
            (encode("the bird "), 1),
            (encode("Once upon a time there was a child"), len(encode("Once upon a time"))),
            ([30, 31, 32, 33, 34, 35], 4),
            ([40, 41, 42], 1),
            (
                encode("the wind turned"),
                len(encode("the wind")),
            ),  # as lm-evaluation-harness splits it
        ]
        for row, (ids, first) in zip(rows, pairs, strict=True):
            expected, greedy = reference(engine, ids, first)
            assert row["token_ids"] == ids[first:]
            assert row["logprobs"] == pytest.approx(expected, abs=1e-4)
            assert row["sum_logprob"] == pytest.approx(math.fsum(expected), abs=1e-3)
            assert (row["is_greedy"], row["num_scored_tokens"]) == (greedy, len(expected))


def test_what_the_model_would_say_is_greedy(model: Path, tmp_path: Path) -> None:
    with make_engine(model) as engine:
        [said] = engine.generate([[30, 31, 32]], SamplingParams(max_new_tokens=4, ignore_eos=True))
    rows = [
        {"prompt": [30, 31, 32], "continuation": list(said.output_ids)},
        {"prompt": [30, 31, 32], "continuation": [*said.output_ids[:3], 300]},
    ]
    assert said.output_ids[3] != 300
    assert score(model, write_rows(tmp_path / "a.jsonl", rows), tmp_path / "out") == 0
    assert [row["is_greedy"] for row in written(tmp_path / "out")] == [True, False]


def test_sums_only_leave_the_tokens_out(model: Path, prompts: Path, tmp_path: Path) -> None:
    assert score(model, prompts, tmp_path / "all") == 0
    assert score(model, prompts, tmp_path / "sums", "--sums-only") == 0
    without = [
        {name: value for name, value in row.items() if name not in ("token_ids", "logprobs")}
        for row in written(tmp_path / "all")
    ]
    assert written(tmp_path / "sums") == without


def test_texts_are_those_of_the_engine(model: Path, prompts: Path, tmp_path: Path) -> None:
    assert generate(model, prompts, tmp_path / "out", "--part-rows", "2", "--logprobs", "1") == 0
    with make_engine(model) as engine:
        params = SamplingParams(max_new_tokens=6, logprobs=1)
        outputs = engine.generate([row["prompt"] for row in PROMPTS], params)
    for row, row_id, output in zip(written(tmp_path / "out"), IDS, outputs, strict=True):
        assert row["id"] == row_id
        assert (row["text"], row["output_ids"]) == (output.text, list(output.output_ids))
        assert row["finish_reason"] == output.finish_reason.value
        assert len(row["logprobs"]) == len(output.output_ids)


def test_samples_do_not_depend_on_parts_or_on_the_batch(
    model: Path, prompts: Path, tmp_path: Path
) -> None:
    sampled = ["--temperature", "1", "--seed", "3", "--n", "2"]
    for name, size in (("one", "1"), ("six", "6")):
        assert generate(model, prompts, tmp_path / name, "--part-rows", size, *sampled) == 0
    rows = written(tmp_path / "one")
    assert rows == written(tmp_path / "six")
    with make_engine(model) as engine:
        params = SamplingParams(max_new_tokens=6, temperature=1, n=2, seed=row_seed(3, "ids"))
        [output] = engine.generate([[40, 41, 42]], params)
    samples = next(row for row in rows if row["id"] == "ids")["samples"]
    assert [sample["text"] for sample in samples] == [one.text for one in output.completions]


def test_a_drawn_seed_is_kept_for_those_who_go_on(
    model: Path, prompts: Path, tmp_path: Path
) -> None:
    words = ["--temperature", "1", "--part-rows", "3"]
    assert generate(model, prompts, tmp_path / "out", *words) == 0
    before = written(tmp_path / "out")
    (tmp_path / "out/part-000001.jsonl").unlink()
    assert generate(model, prompts, tmp_path / "out", *words) == 0
    assert written(tmp_path / "out") == before


BAD: list[dict[str, object] | str] = [
    {"id": "good", "prompt": "the bird"},
    "no JSON",
    {"id": 1, "text": "no prompt"},
    {"id": "good", "prompt": "another"},
    {"id": 2, "prompt": "the bird " * 40},
    {"id": 3, "prompt": [30, 99999]},
    {"id": [4], "prompt": "x"},
    {"id": 5, "prompt": ""},
    {"id": 6, "prompt": "text", "continuation": [30]},
]


def test_bad_rows_are_named_before_the_model_is_loaded(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_rows(tmp_path / "bad.jsonl", BAD)
    assert score(model, source, tmp_path / "out") == 2
    line = error_of(capsys)
    assert "8 bad rows: wanted JSON in bad.jsonl:2, got " in line
    assert "wanted a field prompt in bad.jsonl:3, got only id, text; " in line
    assert (
        "; and 5 more; correct them, name other fields (--prompt-field and its like), or add "
        in line
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"id": "a", "prompt": "x"}, "an id of its own for bad.jsonl:2, got that of bad.jsonl:1"),
        ({"prompt": "the bird " * 40}, "a prompt of at most 64 tokens, got "),
        ({"prompt": [30, 99999]}, "token ids below 509, got 99999 (bad.jsonl:2)"),
        ({"id": True, "prompt": "x"}, "a string or a whole number for id in bad.jsonl:2, got true"),
        ({"prompt": ""}, "a prompt of at least one token, got an empty one (bad.jsonl:2)"),
        ({"prompt": "x", "continuation": ""}, "a continuation of at least one token"),
        (
            {"prompt": "x", "continuation": [3]},
            "prompt and continuation in bad.jsonl:2 both as text or as token ids, got one of each",
        ),
        ({"prompt": None}, "a field prompt in bad.jsonl:2, got none"),
        ({"prompt": 3}, "text or a list of token ids for prompt in bad.jsonl:2, got 3"),
        ("[1]", "a JSON object in bad.jsonl:2, got [1]"),
        ('{"prompt": "x", "prompt": "y"}', "JSON in bad.jsonl:2"),
    ],
)
def test_what_is_wrong_with_a_row_is_told(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    row: dict[str, object] | str,
    told: str,
) -> None:
    source = write_rows(tmp_path / "bad.jsonl", [{"id": "a", "prompt": "fine"}, row])
    assert score(model, source, tmp_path / "out") == 2
    assert f"1 bad row: wanted {told}" in error_of(capsys)


def test_errors_are_written_in_place_of_results_when_asked(model: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "bad.jsonl", BAD)
    assert score(model, source, tmp_path / "out", "--on-error", "write", "--part-rows", "2") == 0
    rows = written(tmp_path / "out")
    names = ["good", "bad.jsonl:2", 1, "bad.jsonl:4", 2, 3, "bad.jsonl:7", 5, 6]
    assert [row["id"] for row in rows] == names
    assert [("error" in row) for row in rows] == [False, *[True] * 8]
    assert json.loads((tmp_path / "out/result.json").read_text())["num_errors"] == 8


def test_a_line_that_never_ends_is_a_bad_row_and_the_next_ones_are_not(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "MOST_ROW_BYTES", 64)
    prompts = ["the bird", "x" * 300, "cliffs", "y" * 64, "north"]
    path = write_rows(tmp_path / "a.jsonl", ({"prompt": prompt} for prompt in prompts))
    for rows in ("1", "5"):
        out = tmp_path / rows
        assert score(model, path, out, "--on-error", "write", "--part-rows", rows) == 0
        found = written(out)
        assert [row["id"] for row in found] == [f"a.jsonl:{number}" for number in range(1, 6)]
        assert ["error" in row for row in found] == [False, True, False, True, False]
        assert "wanted a row of at most " in found[1]["error"]


def test_other_options_are_refused_with_what_differs(
    model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert score(model, prompts, out, "--part-rows", "4") == 0
    capsys.readouterr()
    for more, differing in (
        (["--part-rows", "5"], "--part-rows 4"),
        (["--part-rows", "4", "--dtype", "bf16"], "--dtype auto"),
        (["--part-rows", "4", "--on-error", "write"], "--on-error stop"),
    ):
        assert score(model, prompts, out, *more) == 2
        assert f"got others: that one had {differing}; run its command" in error_of(capsys)
    assert generate(model, prompts, out, "--part-rows", "4") == 2
    assert "that one had the command score" in error_of(capsys)
    assert score(model, prompts, out, "--part-rows", "5", "--overwrite") == 0
    assert len(list(out.glob("part-*"))) == 2


def test_a_finished_job_is_shown_again_without_its_model(
    model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(model, prompts, tmp_path / "out") == 0
    out, err = capsys.readouterr()
    assert out.startswith("6 rows in ")
    assert "ready: " in err
    assert score(model, prompts, tmp_path / "out") == 0
    again, err = capsys.readouterr()
    assert (again, err) == (out, "")


def test_every_kind_of_file_gives_the_same_and_a_folder_all_of_its_files(
    model: Path, tmp_path: Path
) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = ["the bird", "Once upon a time", "a \u2028 separator", "cliffs", "north"]
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "_SUCCESS").write_text("no prompt")
    (folder / "c.txt").write_text("\ufeff" + "\r\n\n  \n".join(texts) + "\n", "utf-8")
    write_rows(folder / "a.jsonl", [{"prompt": text} for text in texts])
    table = arrow.table({"prompt": texts, "other": range(5)})
    parquet.write_table(table, folder / "b.parquet", row_group_size=2)
    assert score(model, folder, tmp_path / "out", "--part-rows", "2") == 0
    rows = written(tmp_path / "out")
    numbers = [f"{name}:{n}" for name in ("a.jsonl", "b.parquet") for n in range(1, 6)]
    assert [row.pop("id") for row in rows] == [*numbers, *(f"c.txt:{n}" for n in (1, 4, 7, 10, 13))]
    assert rows[:5] == rows[5:10] == rows[10:]


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ([b"x", b"y"], "text or a list of token ids for prompt in a.parquet:1, got b'x'"),
        (["x", None], "a field prompt in a.parquet:2, got none"),
    ],
)
def test_what_is_wrong_in_parquet_is_told_by_row(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    column: list[object],
    told: str,
) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"prompt": column}), tmp_path / "a.parquet")
    assert score(model, tmp_path / "a.parquet", tmp_path / "out") == 2
    assert told in error_of(capsys)
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    assert score(model, tmp_path / "a.parquet", tmp_path / "out") == 2
    assert "wanted a Parquet file " in error_of(capsys)


def test_fields_may_have_other_names_and_unread_ones_are_told(
    model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"id": "key", "prompt": "question", "continuation": "answer"}
    rows = [{names[name]: value for name, value in row.items()} | {"x": 1} for row in PROMPTS]
    source = write_rows(tmp_path / "b.jsonl", rows)
    words = [word for name, new in names.items() for word in (f"--{name}-field", new)]
    assert score(model, source, tmp_path / "b", *words) == 0
    assert "note: fields that are not used: x\n" in capsys.readouterr().err
    assert score(model, prompts, tmp_path / "a") == 0
    assert [row["sum_logprob"] for row in written(tmp_path / "a")] == [
        row["sum_logprob"] for row in written(tmp_path / "b")
    ]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("prompts.json", "files of prompts that end in .jsonl, .parquet or .txt"),
        ("none.jsonl", "a prompt in "),
        ("empty", "files of prompts in "),
        ("nine.jsonl", "did you mean "),
    ],
)
def test_wrong_files_are_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, told: str
) -> None:
    (tmp_path / "prompts.json").write_text("[]")
    (tmp_path / "none.jsonl").write_text("\n  \n")
    (tmp_path / "empty").mkdir()
    assert score(model, tmp_path / name, tmp_path / "out") == 2
    assert told in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    model: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(model, prompts, Path("/proc/out")) == 2
    assert "a folder for OUT that can be written" in error_of(capsys)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--prompt", "x", "-o", "out"], "--prompt-file FILE with -o, got other prompts"),
        (["-", "-o", "out"], "--prompt-file FILE with -o, got standard input"),
        (["x", "--part-rows", "7"], "-o FOLDER with --part-rows, got none"),
        (["x", "--on-error", "write"], "-o FOLDER with --on-error, got none"),
        (["--prompt-file", "a.jsonl"], "-o with a prompt file of rows, got a.jsonl"),
    ],
)
def test_options_of_files_go_with_files(
    capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(["generate", "nestling", *words]) == 2
    assert f"wanted {told}; " in error_of(capsys)
