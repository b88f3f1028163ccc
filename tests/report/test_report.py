"""gyrfalcon report: its tables say what the files say, its page is whole and takes no orders from them.

The results are made up, and written by what writes real ones.
"""

import html
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean

import pytest
from results import SUBJECTS, exam_result, gate_result, perplexity_result, signed, sweep

from gyrfalcon.cli.main import main
from gyrfalcon.files.json_fields import Fields
from gyrfalcon.measure import result
from gyrfalcon.measure.mmlu.compare import compare, comparison_json
from gyrfalcon.measure.mmlu.exam import MMLU, Subject
from gyrfalcon.measure.mmlu.exam_identity import mmlu_table
from gyrfalcon.measure.mmlu.proportions import mcnemar, wilson
from gyrfalcon.measure.mmlu.result import ExamResult
from gyrfalcon.measure.mmlu.run import Answer
from gyrfalcon.measure.mmlu.score import answer_json, score, score_json
from gyrfalcon.measure.speed.baseline import PUBLISHED
from gyrfalcon.report.plots import _apart, _mark_log
from gyrfalcon.report.runs import Run, RunHeader, Speed
from gyrfalcon.report.svg import canvas, style

QUIZ = "a quiz, test, hendrycks, 1 shot, 30 questions"
Captured = pytest.CaptureFixture[str]
Writer = Callable[..., Path]
Cells = list[list[str]]

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>$\\frac$|`a`_b_'


@pytest.fixture
def written(tmp_path: Path) -> Writer:
    """Writes a result of a kind to a file of its own, perhaps with another model's name."""

    def write(kind: str, found: dict[str, object], file: str = "", name: str = "falcon-x") -> Path:
        path = tmp_path / (file or f"{kind}.json")
        result.write(signed(kind, found, name), path)
        return path

    return write


def report(*words: object) -> int:
    return main(["report", *map(str, words)])


def made(folder: Path, *words: object) -> str:
    """The page of a report without plots, which take seconds."""
    assert report(*words, "-o", folder, "--no-plots") == 0
    return (folder / "report.html").read_text()


def refusal(capsys: Captured, *words: object) -> str:
    capsys.readouterr()
    assert report(*words, "--no-plots") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def right_of(found: dict[str, object], subject: str | None = None) -> int:
    """Counted once more, from the answers."""
    predictions = found["predictions"]
    assert isinstance(predictions, list)
    asked = [one for one in predictions if subject in (None, one["subject"])]
    return sum(one["pred"] == one["truth"] for one in asked)


def every_kind(written: Writer, name: str = "falcon-x") -> list[Path]:
    return [
        written("speed", sweep().to_json(), name=name),
        written("mmlu", exam_result(), name=name),
        written("precision", gate_result(), name=name),
        written("perplexity", perplexity_result(), name=name),
    ]


def markdown_tables(text: str) -> dict[str, Cells]:
    """The tables of a Markdown page by their titles, cells as they were before they were escaped."""

    def plain(cell: str) -> str:
        return html.unescape(re.sub(r"\\(.)", r"\1", cell.strip()))

    tables: dict[str, Cells] = {}
    for part in re.split(r"^### ", text, flags=re.M)[1:]:
        title, *lines = part.splitlines()
        rows = [line for line in lines if line.startswith("|")]
        cells = [[plain(c) for c in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
        tables[plain(title)] = [row for row in cells if not set("".join(row)) <= set("-:")]
    return tables


class Page(HTMLParser):
    """What a browser would see: tables by their titles, elements, attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, Cells] = {}
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []  # tag, name, value
        self.rows: Cells = []
        self.title = self.place = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.place = tag
        if tag in ("h3", "summary"):
            self.title = ""
        if tag == "table":
            self.rows = self.tables[self.title] = []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.place in ("h3", "summary"):
            self.title += data
        if self.place in ("td", "th"):
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.place = ""


def column(table: Cells, heading: str) -> list[str]:
    return [row[table[0].index(heading)] for row in table[1:]]


# ---- figures ----


def test_both_forms_hold_the_same_tables(written: Writer, tmp_path: Path) -> None:
    page = Page(made(tmp_path, *every_kind(written), "--baseline", "guide"))
    tables = markdown_tables((tmp_path / "report.md").read_text())
    assert len(tables) == 12
    assert page.tables == tables


def test_the_speed_tables_hold_every_case_and_the_means(written: Writer, tmp_path: Path) -> None:
    done = sweep()
    tables = Page(made(tmp_path, written("speed", done.to_json()), "--baseline", "guide")).tables
    cases = tables["Every case of falcon-x, batch 1"]
    assert [tuple(map(int, row[:2])) for row in cases[1:]] == [
        (row.case.input_len, row.case.output_len) for row in done.in_order
    ]
    assert column(cases, "response ms")[-1] == "oom"
    measured = [row.figures for row in done.in_order if row.figures]
    for heading, name in {
        "first token ms": "first_token_ms",
        "response ms": "response_ms",
        "ms per token": "time_per_token_ms",
        "tokens/s": "tokens_per_second",
        "p50 ms": "inter_token_p50_ms",
        "p90 ms": "inter_token_p90_ms",
        "p99 ms": "inter_token_p99_ms",
        "decode %": "decode_percent_of_limit",
        "prefill %": "prefill_percent_of_limit",
    }.items():
        told = [float(cell) for cell in column(cases, heading)[:-1]]
        assert told == pytest.approx([asdict(one)[name] for one in measured], abs=0.05)
    gaps = [(one.inter_token_p50_ms, one.inter_token_p90_ms) for one in measured]
    assert all(p90 - p50 > 0.1 for p50, p90 in gaps)  # swapped columns would show
    means = tables["Means over 3 cases, batch 1, input 32 to 64, output 32 to 64"]
    assert column(means, "cases") == ["3 (1 oom)"]
    mean_ms = fmean(one.time_per_token_ms for one in measured)
    assert float(column(means, "TimePerTokens(ms)")[0]) == pytest.approx(mean_ms, abs=0.005)
    assert float(column(means, "1000 ÷ mean ms")[0]) == pytest.approx(1000 / mean_ms, abs=0.005)
    rates = fmean(one.tokens_per_second for one in measured)
    assert float(column(means, "TokensPerSecond")[0]) == pytest.approx(rates, abs=0.005)
    guide = tables["Means over 36 cases, batch 1, input 32 to 1024, output 32 to 1024"]
    assert column(guide, "FirstTokenTime(ms)") == ["92.83", "150.44"]
    assert all(name.endswith("comparable with no run here") for name in column(guide, "run"))


def test_ratios_to_the_guide_are_of_the_means(written: Writer, tmp_path: Path) -> None:
    done = sweep()
    tables = Page(made(tmp_path, written("speed", done.to_json()), "--baseline", "guide")).tables
    ratios = tables["Times as fast as the baseline"]
    response = fmean(row.figures.response_ms for row in done.in_order if row.figures)
    told = float(column(ratios, "ResponseTime(ms)")[0])
    assert told == pytest.approx(PUBLISHED[0].averages["response_ms"] / response, abs=5e-4)
    assert column(ratios, "cases") == ["3 to 36"] * 2
    for cell in column(ratios, "baseline"):
        assert re.fullmatch(
            r"the guide's Falcon-40B on .*; NOT COMPARABLE: another model: falcon-40b there, a model"
            r" of [\d,]+ parameters here; other cases: means over 36 there, 3 of them here",
            cell,
        )


def test_a_baseline_file_is_compared_case_by_case(written: Writer, tmp_path: Path) -> None:
    ours = written("speed", sweep().to_json())
    theirs = written("speed", sweep(slower=2.0).to_json(), "slow.json", name="falcon-slow")
    tables = Page(made(tmp_path, ours, "--baseline", theirs)).tables
    [row] = tables["Times as fast as the baseline"][1:]
    assert row[:3] == ["falcon-x", "falcon-slow", "3 to 3"]
    assert [float(cell) for cell in row[3:]] == pytest.approx([2.0] * 5)


def test_batches_are_never_averaged_together(written: Writer, tmp_path: Path) -> None:
    both = sweep()
    both.rows.update(sweep(slower=3.0, batch=4).rows)
    tables = Page(made(tmp_path, written("speed", both.to_json()), "--baseline", "guide")).tables
    times = []
    for batch in (1, 4):
        means = tables[f"Means over 3 cases, batch {batch}, input 32 to 64, output 32 to 64"]
        assert column(means, "run") == [f"falcon-x, batch {batch}"]
        times.append(float(column(means, "TimePerTokens(ms)")[0]))
    assert times[1] == pytest.approx(3 * times[0], abs=0.02)
    assert set(column(tables["Times as fast as the baseline"], "run")) == {"falcon-x, batch 1"}


def test_the_mmlu_tables_hold_counts_percent_and_intervals(written: Writer, tmp_path: Path) -> None:
    found = exam_result()
    tables = Page(made(tmp_path, written("mmlu", found), "--baseline", "guide")).tables
    subjects = tables[f"{QUIZ}: counts by subject"]
    assert {row[2] for row in subjects[1:]} == set(SUBJECTS)
    for _, category, name, right, asked, percent, interval in subjects[1:]:
        assert category == SUBJECTS[name]
        assert (int(right), int(asked)) == (right_of(found, name), 10)
        assert float(percent) == pytest.approx(10 * int(right))
        low, high = (float(end) / 100 for end in interval.strip("()").split(" to "))
        assert (low, high) == pytest.approx(wilson(int(right), 10), abs=5e-5)
    summary = tables[f"{QUIZ}: accuracy by category"]
    assert float(column(summary, "STEM")[0]) == 10 * right_of(found, "astronomy")
    assert column(summary, "humanities")[0] == "–"  # nothing was asked
    assert float(column(summary, "Avg")[0]) == pytest.approx(100 * right_of(found) / 30, abs=0.005)
    guide = tables["MMLU, val, generate, 5 shots, 1531 questions: accuracy by category"]
    assert [row[1:6] for row in guide[1:]] == [  # as the guide prints them, but for its two Avg
        ["41.12", "64.99", "49.81", "65.35", "54.93"],
        ["40.50", "65.28", "50.19", "65.07", "54.93"],
    ]


def test_a_baseline_of_a_kind_that_is_not_reported_is_refused(
    written: Writer, tmp_path: Path, capsys: Captured
) -> None:
    ours, theirs = written("speed", sweep().to_json()), written("mmlu", exam_result(), "other.json")
    assert report(ours, "-o", tmp_path / "r", "--no-plots", "--baseline", theirs) == 2
    wanted = f"wanted a baseline of speed, as the results are, in {theirs}, got a mmlu result"
    assert wanted in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_two_mmlu_runs_are_compared_question_by_question(written: Writer, tmp_path: Path) -> None:
    one, other = exam_result(), exam_result(shift=1)
    files = written("mmlu", one), written("mmlu", other, "other.json", name="falcon-y")
    tables = Page(made(tmp_path, files[0], "--baseline", files[1])).tables
    everything = tables[f"falcon-x beside falcon-y, question by question: {QUIZ}"][-1]
    assert everything[:4] == ["all", "30", "0", "0.00"]  # shifted: no answer is the same
    assert (int(everything[4]), int(everything[5])) == (right_of(one), right_of(other))
    assert float(everything[6]) == pytest.approx(mcnemar(right_of(one), right_of(other)), abs=5e-5)


def test_runs_that_asked_in_another_way_are_not_compared(written: Writer, tmp_path: Path) -> None:
    files = (
        written("mmlu", exam_result()),
        written("mmlu", exam_result(protocol="lm-eval"), "other.json"),
    )
    page = made(tmp_path, files[0], "--baseline", files[1])
    assert "Not comparable: two runs with the same protocol are needed" in page
    assert re.search(r"are needed\. [^<]*: hendrycks; [^<]*other\.json: lm-eval\.", page)


def test_two_runs_of_an_exam_are_compared_without_a_baseline_too(
    written: Writer, tmp_path: Path, capsys: Captured
) -> None:
    one, other = exam_result(), exam_result(shift=1)
    files = written("mmlu", one), written("mmlu", other, "other.json", name="falcon-y")
    assert report(*files, "-o", tmp_path, "--no-plots", "--json", "-") == 0
    told = json.loads(capsys.readouterr().out)
    title = f"falcon-y beside falcon-x, question by question: {QUIZ}"
    assert title in Page((tmp_path / "report.html").read_text()).tables
    assert title in [table["title"] for table in told["sections"][0]["tables"]]
    [card] = [card for card in told["highlights"] if card["what"].startswith("McNemar")]
    p = mcnemar(right_of(other), right_of(one))
    assert (card["run"], card["value"]) == ("falcon-y beside falcon-x", f"p = {p:.4f}")


def test_a_comparison_that_a_run_brings_along_is_told(written: Writer, tmp_path: Path) -> None:
    first, second = (
        ExamResult.from_json(Fields(json.loads(json.dumps(found)), "a test"), "falcon")
        for found in (exam_result(), exam_result(shift=1))
    )
    beside = comparison_json(compare(first, second))
    beside["with"] = {"file": "earlier/mmlu.json", "model": "falcon-y"}
    path = written("mmlu", exam_result() | {"comparison": beside})
    tables = Page(made(tmp_path, path)).tables
    title = f"falcon-x beside falcon-y in earlier/mmlu.json, question by question: {QUIZ}"
    assert tables[title][-1][:2] == ["all", "30"]
    everything = beside["all"]
    assert isinstance(everything, dict)
    for name in ("total", "same", "both_right", "only_first", "only_second"):
        wrong = {**beside, "all": {**everything, name: everything[name] + 1}}
        path = written("mmlu", exam_result() | {"comparison": wrong})
        assert report(path, "-o", tmp_path, "--no-plots") == 2


def test_different_exams_never_share_a_table(written: Writer, tmp_path: Path) -> None:
    files = (
        written("mmlu", exam_result(), "1.json"),
        written("mmlu", exam_result(exam_name="MMLU", number=9), "2.json", name="falcon-y"),
        written("mmlu", exam_result(protocol="lm-eval"), "3.json", name="falcon-z"),
    )
    page = made(tmp_path, *files)
    runs = {
        title: column(cells, "run")
        for title, cells in Page(page).tables.items()
        if "accuracy by category" in title
    }
    assert runs == {
        f"{QUIZ}: accuracy by category": ["falcon-x"],
        "MMLU, test, hendrycks, 1 shot, 27 of 30 questions: accuracy by category": ["falcon-y"],
        "a quiz, test, lm-eval, 1 shot, 30 questions: accuracy by category": ["falcon-z"],
    }
    assert "McNemar" not in page
    cards = re.findall(r'class="what">([^<]*)', page)
    assert cards == [title.removesuffix(": accuracy by category") for title in runs]


def test_exams_that_only_their_questions_tell_apart_have_tables_of_their_own(
    written: Writer, tmp_path: Path
) -> None:
    changed = exam_result() | {"exam_sha256": "0123456789"}
    files = written("mmlu", exam_result()), written("mmlu", changed, "2.json", name="falcon-y")
    tables = Page(made(tmp_path, *files)).tables
    assert column(tables[f"{QUIZ} (checksum 01234567): accuracy by category"], "run") == [
        "falcon-y"
    ]


def test_a_run_that_asked_as_the_guide_did_stands_beside_it_and_says_which_model_it_is(
    tmp_path: Path,
) -> None:
    subjects = {
        name: Subject(name, category, (), ()) for category in MMLU for name in MMLU[category]
    }
    answers = [
        Answer(name, n, "A", "A", 5, 9, text="A")
        for name, known in mmlu_table("val").items()
        for n in range(known.num_questions)
    ]
    found = {
        "exam": {"name": "MMLU", "num_subjects": 57, "num_questions": 1531},
        **{"protocol": "generate", "protocol_version": 1, "split": "val", "shots": 5},
        "exam_sha256": "0",
        "num_questions": 1531,
        **score_json(score(list(subjects.values()), answers), list(subjects.values())),
        "predictions": [answer_json(answer) for answer in answers],
    }
    path, document = tmp_path / "mmlu.json", signed("mmlu", found)
    small = document["model"]
    for model in (small, {"name": "cut", **FALCON_40B}):
        path.write_text(json.dumps({**document, "model": model}))
        tables = Page(made(tmp_path, path, "--baseline", "guide")).tables
        runs = column(
            tables["MMLU, val, generate, 5 shots, 1531 questions: accuracy by category"], "run"
        )
        assert runs[1:] == ["Falcon-40B (the guide, A100)", "Falcon-40B (the guide, 4 × 910B3)"]
        assert runs[0] == "cut" or runs[0].endswith("parameters, not the guide's falcon-40b)")


FALCON_40B = {
    "parameters": 41_303_293_952,
    "config": {
        "hidden_size": 8192,
        "num_layers": 60,
        "num_heads": 128,
        "num_kv_heads": 8,
        "ffn_size": 32768,
        "vocab_size": 65024,
    },
}


def test_sweeps_of_other_cases_never_share_a_table_of_means(
    written: Writer, tmp_path: Path
) -> None:
    files = (
        written("speed", sweep(fits=True).to_json()),
        written("speed", sweep(slower=2.0, fits=True).to_json(), "2.json", "falcon-y"),
        written("speed", sweep().to_json(), "3.json", "falcon-z"),  # one of its cases did not fit
    )
    tables = Page(made(tmp_path, *files)).tables
    ends = "batch 1, input 32 to 64, output 32 to 64"
    assert column(tables[f"Means over 4 cases, {ends}"], "run") == ["falcon-x", "falcon-y"]
    assert column(tables[f"Means over 3 cases, {ends}"], "run") == ["falcon-z"]


def test_a_whole_sweep_of_falcon_40b_stands_beside_the_guide(
    written: Writer, tmp_path: Path
) -> None:
    whole = sweep(lengths=(32, 64, 128, 256, 512, 1024), fits=True).to_json()
    path, document = written("speed", whole), signed("speed", whole)
    title = "Means over 36 cases, batch 1, input 32 to 1024, output 32 to 1024"
    path.write_text(json.dumps(document))
    tables = Page(made(tmp_path, path, "--baseline", "guide")).tables
    assert column(tables[title], "run")[0].endswith("parameters, not falcon-40b)")
    path.write_text(json.dumps({**document, "model": {"name": "cut", **FALCON_40B}}))
    tables = Page(made(tmp_path, path, "--baseline", "guide")).tables
    guides = [one.name for one in PUBLISHED[:2]]
    assert column(tables[title], "run") == ["cut", *guides]
    assert column(tables["Times as fast as the baseline"], "baseline") == guides


def test_the_precision_tables_hold_every_figure_its_limit_and_the_verdict(
    written: Writer, tmp_path: Path
) -> None:
    good, bad = gate_result(), gate_result(error=0.1)
    files = written("precision", good), written("precision", bad, "bad.json", name="falcon-y")
    page = made(tmp_path, *files)
    tables = Page(page).tables
    verdicts = column(tables["Cosine similarity of the logits"], "gate")
    assert ["good" in card for card in re.findall(r'class="card ([^"]*)"', page)] == [True, False]
    stated = bad["figures"]
    assert isinstance(stated, dict)
    held = [figure["held"] for phase in stated.values() for figure in phase]
    assert verdicts == ["holds", f"FAILS: {held.count(False)} of {len(held)} figures"]
    rows = tables["All figures of falcon-y"][1:]
    assert len(rows) == len(stated["prefill"])
    for row, prefill, decode in zip(rows, stated["prefill"], stated["decode"], strict=True):
        for cell, figure in zip(row[1:3], (prefill, decode), strict=True):
            assert figure["value"] is None or float(cell) == pytest.approx(
                figure["value"], rel=0.01
            )
        assert row[4] == (
            "" if prefill["limit"] is None else "yes" if _held(prefill, decode) else "NO"
        )


def _held(*stated: dict[str, object]) -> bool:
    return all(figure["held"] for figure in stated)


def test_the_perplexity_table_holds_its_figures(written: Writer, tmp_path: Path) -> None:
    found = perplexity_result()
    [row] = Page(made(tmp_path, written("perplexity", found))).tables["Perplexity"][1:]
    assert row[:6] == ["falcon-x", "a_book.txt", "64", "32", "500", "2100"]
    stated = [found[name] for name in ("perplexity", "bits_per_token", "bits_per_byte")]
    assert [float(cell) for cell in row[6:]] == pytest.approx(stated, abs=5e-5)


def test_other_texts_never_share_a_table(written: Writer, tmp_path: Path) -> None:
    other = perplexity_result() | {"file": "news.txt"}
    files = (
        written("perplexity", perplexity_result(), "1.json"),
        written("perplexity", other, "2.json", name="falcon-y"),
    )
    tables = Page(made(tmp_path, *files)).tables
    for text, run in {"a_book.txt": "falcon-x", "news.txt": "falcon-y"}.items():
        title = f"Perplexity, 2100 bytes of {text}, window 64, stride 32"
        assert column(tables[title], "run") == [run]


def test_runs_of_one_model_are_told_apart_by_what_differs(written: Writer, tmp_path: Path) -> None:
    paths = [
        written("perplexity", perplexity_result(), f"{n}.json", "/a/falcon-x") for n in range(3)
    ]
    document = json.loads(paths[0].read_text())
    document["settings"]["dtype"] = "bf16"
    paths[0].write_text(json.dumps(document))
    table = Page(made(tmp_path, *paths)).tables["Perplexity"]
    assert column(table, "run") == [
        "falcon-x, bf16",
        f"falcon-x, fp32, {paths[1]}",
        f"falcon-x, fp32, {paths[2]}",
    ]


@pytest.mark.parametrize("kept", range(4))
def test_one_kind_alone_makes_a_report(written: Writer, tmp_path: Path, kept: int) -> None:
    path = every_kind(written)[kept]
    page = Page(made(tmp_path, path, "--baseline", "guide"))
    ids = {value for tag, name, value in page.attributes if (tag, name) == ("section", "id")}
    assert ids == {path.stem, "runs"}


def test_json_holds_what_the_tables_hold(written: Writer, tmp_path: Path, capsys: Captured) -> None:
    path = written("perplexity", perplexity_result())
    assert report(path, "-o", tmp_path / "out", "--no-plots", "--json", "-") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == [str(tmp_path / "out" / name) for name in ("report.html", "report.md")]
    assert told["sections"][0]["tables"][0]["rows"][0][0] == "falcon-x"


def test_the_title_says_which_models_on_what_and_when(written: Writer, tmp_path: Path) -> None:
    files = [
        written("perplexity", perplexity_result(), f"{n}.json", f"m/falcon-{n}") for n in "abcde"
    ]
    document = json.loads(files[1].read_text())
    document["date"] = "2026-01-02T03:04:05+00:00"
    document["machine"]["processor"] = "A <Chip>"
    files[1].write_text(json.dumps(document))
    page = made(tmp_path, *files)
    names, chip = "falcon-a, falcon-b, falcon-c and 2 more", html.escape("A <Chip>")
    [title] = re.findall("<title>(.*?)</title>", page)
    today = json.loads(files[0].read_text())["date"][:10]
    assert title.startswith(f"{names}: measured with gyrfalcon; ")
    assert title.endswith(f", {chip}; 2026-01-02 to {today}")
    assert f"<h1>{names}: measured with gyrfalcon</h1>" in page
    assert (tmp_path / "report.md").read_text().startswith(f"# {names}: measured with gyrfalcon\n")


def test_weights_are_called_what_they_are(written: Writer, tmp_path: Path) -> None:
    paths = [written("perplexity", perplexity_result(), f"{n}.json") for n in range(3)]
    for path, (dtype, quant) in zip(
        paths, [("bf16", "none"), ("fp32", "none"), ("bf16", "int8")], strict=True
    ):
        document = json.loads(path.read_text())
        document["settings"].update(dtype=dtype, quant=quant)
        path.write_text(json.dumps(document))
    tables = Page(made(tmp_path, *paths)).tables
    labels = ["falcon-x, bf16", "falcon-x, fp32", "falcon-x, int8, bf16"]
    assert column(tables["Perplexity"], "run") == labels
    assert column(tables["Runs"], "weights") == ["bf16", "fp32", "int8, bf16"]


# ---- the page ----


@pytest.fixture
def whole(written: Writer, tmp_path: Path) -> str:
    """A page with every plot, of a model whose name is an attack."""
    files = every_kind(written, HOSTILE)
    files.append(written("speed", sweep(slower=1.5).to_json(), "baseline.json", "猎鹰-7b"))
    assert report(*files[:4], "--baseline", "guide", files[4], "-o", tmp_path) == 0
    return (tmp_path / "report.html").read_text()


def test_the_whole_page_is_sound(whole: str) -> None:
    """One page, for drawing it takes seconds: see what is asked of it at each line."""
    page = Page(whole)
    # plots: heat maps of two runs, first token, gaps, two limits; categories, three subjects; cosine
    assert page.tags.count("svg") == 6 + 4 + 1
    # a hostile name stays text
    assert not {"script", "img", "iframe", "object", "link"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert html.escape("<script>alert(1)</script>") in whole
    # nothing is loaded from anywhere
    assert "http://" not in whole
    assert "https://" not in whole
    assert "@import" not in whole
    references = [v for _, name, v in page.attributes if name in ("href", "src", "xlink:href")]
    assert references
    assert all(value.startswith("#") for value in references)
    targets = re.findall(r"url\(([^)]*)\)", whole)
    assert all(target.startswith("#") for target in targets)
    # what is referred to is there, once
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in [*references, *targets]} <= set(ids)
    # light, dark, a phone
    assert "@media (prefers-color-scheme: dark)" in whole
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in whole
    colours = re.findall(
        r"(?:fill|stroke): (#\w+|var\(--[\w-]+\))", "".join(whole.split("<svg")[1:])
    )
    assert colours
    assert all(colour.startswith("var(") for colour in colours)
    light, dark = re.findall(r":root \{(.*?)\}", whole, re.DOTALL)
    for colour in set(colours):
        name = f"{colour[4:-1]}:"
        assert name in light
        assert name in dark


def test_plots_that_have_nothing_to_show_are_left_out(written: Writer, tmp_path: Path) -> None:
    failed = sweep(lengths=(32,))  # its only case
    gate = gate_result()
    prompts = gate["prompts"]
    assert isinstance(prompts, list)
    prompts[0]["cosine"] = [None] * 9  # NaN, which JSON has no number for
    [figures] = [gate["figures"]]
    assert isinstance(figures, dict)
    for phase in figures.values():
        for figure in phase:
            if figure["name"] == "centred_cosine_p5":
                figure.update(value=None, held=False)
    gate["passed"] = False
    files = written("speed", failed.to_json()), written("precision", gate)
    assert report(*files, "-o", tmp_path) == 0
    page = Page((tmp_path / "report.html").read_text())
    assert "svg" not in page.tags
    assert column(page.tables["Means over no case"], "cases") == ["0 (1 oom)"]


@pytest.mark.parametrize(
    ("low", "high"), [(45, 48), (45, 45), (210, 340), (0.0021, 0.0029), (1, 9), (3, 250), (1, 1e5)]
)
def test_an_axis_has_marks_enough_to_be_read(low: float, high: float) -> None:
    with style():
        figure, axes = canvas(2)
        axes.plot([1, 2], [low, high])
        axes.set_yscale("log")
        _mark_log(axes.yaxis, [low, high])
        figure.canvas.draw()
        bottom, top = axes.get_ylim()
        marks = [
            label.get_text()
            for tick, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
            if bottom <= tick <= top
        ]
    assert len(set(marks)) >= 3
    assert bottom <= low <= high <= top


def test_runs_of_other_cases_are_told_apart_in_a_plot_that_they_share() -> None:
    head = RunHeader(
        path=Path("x"),
        kind="speed",
        is_baseline=False,
        model="x",
        model_kind="x",
        parameters=1,
        ranks=1,
        device="cpu",
        dtype="bf16",
        quant="none",
        machine="x",
        date="x",
        version="x",
    )
    whole, part = (
        Run(head, label, Speed(1, tuple(one.in_order), None))
        for label, one in {"whole": sweep(fits=True), "part": sweep()}.items()
    )
    assert _apart([whole, part]) == {"whole": "whole, 4 cases", "part": "part, 3 cases"}
    assert _apart([part]) == {"part": "part"}


def test_a_phone_is_told_where_a_table_goes_on(written: Writer, tmp_path: Path) -> None:
    page = made(tmp_path, *every_kind(written))
    wide = len([cells for cells in Page(page).tables.values() if len(cells[0]) > 3])
    assert page.count('<p class="hint">') == wide > 5
    assert re.search(r"@media \(max-width: 40rem\) \{[^@]*\.hint \{ display: block", page)


def test_a_hostile_name_stays_text_in_markdown(written: Writer, tmp_path: Path) -> None:
    made(tmp_path, written("perplexity", perplexity_result(), name=HOSTILE.replace("/", "∕")))
    text = (tmp_path / "report.md").read_text()
    assert "<" not in text
    assert column(markdown_tables(text)["Perplexity"], "run") == [HOSTILE.replace("/", "∕")]


# ---- what is refused ----


def test_tables_need_no_matplotlib_and_plots_name_the_extra(
    written: Writer, tmp_path: Path
) -> None:
    path = written("perplexity", perplexity_result())
    code = (
        "import importlib.util, sys\n"
        "sys.modules['matplotlib'] = None\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'matplotlib' else found(name)\n"
        "from gyrfalcon.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, "report", str(path), "-o", str(tmp_path), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    refused = run()
    assert refused.returncode == 2
    assert "-m pip install matplotlib, or add --no-plots" in refused.stderr
    assert run("--no-plots").returncode == 0
    assert (tmp_path / "report.html").exists()


def test_files_that_are_no_results_are_refused_in_one_line(
    tmp_path: Path, capsys: Captured
) -> None:
    path = tmp_path / "x.json"
    for text in ("", "{", "[]", "3", '{"format": "other"}', "[" * 100000):
        path.write_text(text)
        assert str(path) in refusal(capsys, path)
    path.write_bytes(b"\xff\xfe")
    assert str(path) in refusal(capsys, path)
    assert "nowhere.json" in refusal(capsys, tmp_path / "nowhere.json")
