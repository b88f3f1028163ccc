"""Every file of ours that is read back is checked like a foreign one: each damage is one clear line,
never a traceback, and never a result that nobody measured.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from exams import answer
from results import exam_result, gate_result, perplexity_result, signed, sweep
from safetensors.torch import load_file, save_file

from gyrfalcon.cli.main import main
from gyrfalcon.errors import GyrfalconError, NotFinite, UsageError
from gyrfalcon.measure.mmlu.exam import read_exam
from gyrfalcon.measure.mmlu.files import FINISHED, JOURNAL, unfinished
from gyrfalcon.measure.mmlu.result import ExamResult
from gyrfalcon.measure.mmlu.score import answer_json
from gyrfalcon.measure.precision.gate import Figure
from gyrfalcon.measure.precision.reference_file import Origin, Reference, write_reference
from gyrfalcon.measure.speed.baseline import baselines
from gyrfalcon.measure.speed.files import Files
from gyrfalcon.model.architectures import config_from_json
from gyrfalcon.report.document import make_report, markdown
from gyrfalcon.report.files import read_results

Document = dict[str, Any]

REMOVED = object()
WRONG_VALUES: tuple[object, ...] = (REMOVED, None, "x", -7, 1e300, True)
WRONG_CONTAINERS: tuple[object, ...] = (REMOVED, None, "x", {}, [])


def report(path: Path) -> str:
    """All that a report makes of a file, also as its own baseline."""
    results = read_results([str(path)], [str(path)])
    return markdown(make_report(results, beside_guide=True))


def resume(path: Path) -> object:
    files = Files(None, path)
    return files.resume(files.earlier(), signed("speed", {}), 1)


RESULTS: Mapping[str, Callable[[], Document]] = {
    "speed": lambda: sweep(lengths=(3,), fits=True).to_json(),
    "mmlu": lambda: exam_result(number=1),
    "precision": gate_result,
    "perplexity": perplexity_result,
}
READERS: Mapping[str, tuple[Callable[[Path], object], ...]] = {
    "speed": (report, lambda path: baselines(str(path), "falcon-x"), resume),
    "mmlu": (report, ExamResult.load),
    "precision": (report,),
    "perplexity": (report,),
}
OPTIONAL = ("exam",)  # earlier versions did not name it
# What no reader takes from a file, for it is computed again from the rest; and a list of any length.
UNREAD = {
    "peak_memory_bytes",
    "averages",
    "baselines",
    "accuracy",
    "interval",
    "interval_kind",
    "macro_accuracy",
}


def changes(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Changes a document in place, one thing after the other, and takes each change back; yields the
    place of each. Of a list the first item stands for all; it also comes twice.
    """
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value[:1]))
    for key, inner in pairs:
        here = (*place, str(key))
        is_container = isinstance(inner, dict | list)
        for wrong in WRONG_CONTAINERS if is_container else WRONG_VALUES:
            if type(wrong) is type(inner) and (wrong == inner or isinstance(inner, str)):
                continue  # a word may be any
            whole = value.copy()
            if wrong is not REMOVED:
                value[key] = wrong
            elif isinstance(value, dict):
                del value[key]
            else:
                value.append(inner)
            yield here
            value.clear()
            value.update(whole) if isinstance(value, dict) else value.extend(whole)
        if is_container:
            yield from changes(inner, here)


@pytest.mark.parametrize("kind", RESULTS)
def test_a_result_with_any_value_changed_is_refused(kind: str, tmp_path: Path) -> None:
    path, document = tmp_path / "result.json", signed(kind, RESULTS[kind]())
    for read in READERS[kind]:
        path.write_text(json.dumps(document), "utf-8")
        read(path)
    count = 0
    for place in changes(document["result"]):
        path.write_text(json.dumps(document), "utf-8")
        for read in READERS[kind]:
            if place != OPTIONAL and not UNREAD & set(place):
                refused(read, path, place)
                count += 1
    assert count > 20


def refused(read: Callable[[Path], object], path: Path, what: object) -> None:
    """One line, exit code 2."""
    try:
        with pytest.raises(GyrfalconError) as caught:
            read(path)
    except BaseException as error:
        error.add_note(f"with {what}")
        raise
    assert caught.value.exit_code == 2, what


def test_a_result_without_any_of_what_a_report_tells_is_refused(tmp_path: Path) -> None:
    path, document = tmp_path / "result.json", signed("perplexity", perplexity_result())
    told = {
        "model": ("name", "parameters"),
        "settings": ("world_size", "device", "dtype", "quant"),
        "machine": ("processor", "accelerators"),
    }
    wrong_values: tuple[object, ...] = (None, -7, {"x": 1})
    changed: list[Document] = [{**document, name: w} for name in told for w in wrong_values[:2]]
    for name, keys in told.items():
        part = document[name]
        assert isinstance(part, dict)
        changed += [{**document, name: {**part, key: w}} for key in keys for w in wrong_values]
    changed += [{**document, "date": "yesterday"}, {**document, "version": True}]
    for one in changed:
        path.write_text(json.dumps(one), "utf-8")
        refused(report, path, one)


def damaged_texts(text: str) -> Iterator[bytes]:
    """A JSON object of one line, damaged as text: cut short, no UTF-8, what JSON is not, nested."""
    raw = text.encode()
    for end in range(0, len(raw) - 1, max(1, len(raw) // 12)):
        yield raw[:end]
    yield raw[:-1] + b',"x":NaN}'
    yield raw[:-1] + b',"x":1e999}'
    yield raw[:-1] + b',"x":' + b"9" * 5000 + b"}"
    yield raw[:-1] + b',"x":"\xff"}'
    yield raw[:-1] + b',"x":1,"x":1}'
    for depth in (200, 900, 100_000):
        yield raw[:-1] + b',"x":' + b"[" * depth + b"]" * depth + b"}"
    yield b"\xef\xbb\xbf" + raw
    yield raw + b"}"
    yield b"\0" * len(raw)


@pytest.mark.parametrize("kind", RESULTS)
def test_a_result_damaged_as_text_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    for raw in damaged_texts(json.dumps(signed(kind, RESULTS[kind]()))):
        path.write_bytes(raw)
        for read in READERS[kind]:
            refused(read, path, raw[-40:])


def test_half_a_surrogate_pair_in_a_name_does_not_end_a_report(tmp_path: Path) -> None:
    """JSON can hold it, no file can."""
    path = tmp_path / "result.json"
    path.write_text(json.dumps(signed("perplexity", perplexity_result(), name="falcon-\ud800")))
    assert main(["report", str(path), "-o", str(tmp_path), "--no-plots"]) == 0
    assert "falcon-?" in (tmp_path / "report.html").read_text("utf-8")


# ---- an exam ----


def change_first(found: Document, **fields: object) -> None:
    found["predictions"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda found: found["predictions"].append(found["predictions"][0]), "got 4 to 3"),
        (lambda found: change_first(found, id=7), "got astronomy 7"),
        (lambda found: change_first(found, subject="alchemy"), "got alchemy 0"),
        (lambda found: change_first(found, **found["predictions"][1]), "got two to virology 0"),
        (lambda found: change_first(found, truth="B"), "wanted 0 of 1 right"),
        (lambda found: change_first(found, pred="B"), 'wanted pred "A"'),
        (lambda found: found.update(right=8), "got 8 of 3"),
        (lambda found: found["subjects"]["virology"].update(right=0), "wanted 1 of 1 right"),
        (lambda found: found["categories"]["STEM"].update(total=2), "wanted 1 of 1 right"),
        (lambda found: found.update(num_questions=10**12), "answers to 1000000000000 questions"),
        (
            lambda found: found["dropped"].append({"subject": "virology", "id": 1}),
            "got 3 to 4",
        ),
    ],
)
def test_an_answer_that_no_run_can_have_given_is_named(
    change: Callable[[Document], object], got: str, tmp_path: Path
) -> None:
    found, path = exam_result(number=1), tmp_path / "mmlu.json"
    change(found)
    path.write_text(json.dumps(signed("mmlu", found)))
    with pytest.raises(GyrfalconError) as caught:
        ExamResult.load(path)
    assert got in str(caught.value)


def test_a_result_of_an_earlier_version_is_of_an_unnamed_exam(tmp_path: Path) -> None:
    found, path = exam_result(number=1), tmp_path / "mmlu.json"
    del found["exam"]
    path.write_text(json.dumps(signed("mmlu", found)))
    assert ExamResult.load(path).exam.name == f"unnamed exam {str(found['exam_sha256'])[:12]}"
    for part in ({"num_questions": 2}, {"num_subjects": 2}, {"name": 3}):
        stated = {"name": "MMLU", "num_subjects": 57, "num_questions": 14042, **part}
        path.write_text(json.dumps(signed("mmlu", {**found, "exam": stated})))
        refused(ExamResult.load, path, part)


IDENTITY = {"model": "m", "shots": 5}


def test_a_journal_damaged_in_any_way_is_refused(exam_folder: Path, tmp_path: Path) -> None:
    exam = read_exam(exam_folder, "test")
    head, raw = json.dumps(IDENTITY), answer_json(answer("birds", 0, "A", "B"))
    other = json.dumps(answer_json(answer("birds", 1, "D", "B")))
    journal = tmp_path / JOURNAL

    def read(_: Path) -> object:
        return unfinished(tmp_path, IDENTITY, exam)

    journal.write_text(f"{head}\n{json.dumps(raw)}\n{other}\n")
    assert [one.id for one in unfinished(tmp_path, IDENTITY, exam)] == [0, 1]
    wrong_lines = ["3", "[]", "null", '"x"', head]
    wrong_lines += [json.dumps(raw) for _ in changes(raw)]
    wrong_lines += [json.dumps(raw | {"truth": "B"}), json.dumps(raw | {"id": 3}), other]
    wrong_lines.append(json.dumps(FINISHED))  # and something after it
    for line in wrong_lines:
        journal.write_text(f"{head}\n{line}\n{other}\n")
        refused(read, journal, line)
    for damaged in damaged_texts(json.dumps(raw)):
        journal.write_bytes(head.encode() + b"\n" + damaged + b"\n" + other.encode() + b"\n")
        refused(read, journal, damaged[-40:])
    for first in ("3", "[]", "{}", '{"model": "n"}'):
        journal.write_text(f"{first}\n{other}\n")
        refused(read, journal, first)


# ---- references ----

CONFIG = config_from_json(
    {
        "model_type": "falcon",
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 11,
        "multi_query": True,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
        "new_decoder_architecture": False,
    }
)
ORIGIN = Origin("fp32", "a test", independent=False)


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "reference.safetensors"
    write_reference(path, CONFIG, ORIGIN, [[1, 2, 3]], [torch.ones(3, 11)])
    return path


def metadata_of(path: Path) -> dict[str, str]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    found: dict[str, str] = json.loads(raw[8 : 8 + length])["__metadata__"]
    return found


def test_a_reference_is_read_as_it_was_written(reference: Path) -> None:
    found = Reference.open(reference, CONFIG)
    assert (found.origin, found.prompts) == (ORIGIN, ((1, 2, 3),))
    assert torch.equal(found.logits(0), torch.ones(3, 11))


def test_a_reference_damaged_in_any_way_is_refused(reference: Path) -> None:
    tensors, metadata = load_file(reference), metadata_of(reference)
    ids, logits = "prompt.0.ids", "prompt.0.logits"

    def read(path: Path) -> object:
        return Reference.open(path, CONFIG)

    wrong_tensors: list[dict[str, torch.Tensor]] = [
        {},
        {ids: tensors[ids]},
        {logits: tensors[logits]},
        {"prompt.1.ids": tensors[ids], "prompt.1.logits": tensors[logits]},
        {**tensors, "prompt.1.ids": tensors[ids].clone()},
        {**tensors, "x": tensors[ids].clone()},
        *({**tensors, ids: wrong} for wrong in wrong_ids(tensors[ids])),
        *({**tensors, logits: wrong} for wrong in wrong_logits(tensors[logits])),
    ]
    for wrong in wrong_tensors:
        save_file(wrong, reference, metadata)
        refused(read, reference, {name: tensor.shape for name, tensor in wrong.items()})
    for name, text in metadata.items():
        damaged = [value.decode() for value in damaged_texts(text) if b"\xff" not in value]
        if name in ("model", "origin"):
            raw = json.loads(text)
            damaged += [json.dumps(raw) for _ in changes(raw)]
            damaged += ["3", "null"]
        else:
            damaged = ["", "2", "other"]
        for value in damaged:
            save_file(tensors, reference, {**metadata, name: value})
            refused(read, reference, (name, value[:200]))
        save_file(
            tensors, reference, {key: value for key, value in metadata.items() if key != name}
        )
        refused(read, reference, name)
    save_file(tensors, reference, metadata)
    whole = reference.read_bytes()
    for end in range(0, len(whole), 40):
        reference.write_bytes(whole[:end])
        refused(read, reference, end)


def wrong_ids(ids: torch.Tensor) -> list[torch.Tensor]:
    return [ids.int(), ids.float(), ids[None], ids[:0], ids[:2], torch.tensor(1)]


def wrong_logits(logits: torch.Tensor) -> list[torch.Tensor]:
    bad = logits.clone()
    bad[1, 1] = torch.nan
    infinite = logits.clone()
    infinite[2, 0] = torch.inf
    return [logits.half(), logits[:2], logits[:, :10].contiguous(), logits[None], bad, infinite]


def test_an_independence_that_nobody_has_is_refused(reference: Path) -> None:
    metadata = metadata_of(reference)
    claimed = json.dumps({"kind": "fp32", "description": "a test", "independent": True})
    save_file(load_file(reference), reference, {**metadata, "origin": claimed})
    with pytest.raises(UsageError, match="independent for transformers alone"):
        Reference.open(reference, CONFIG)


def test_logits_that_are_nan_are_not_kept_as_a_reference(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    with pytest.raises(NotFinite):
        write_reference(path, CONFIG, ORIGIN, [[1]], [torch.full((1, 11), torch.nan)])
    assert list(tmp_path.iterdir()) == []


# ---- a gate that holds ----


def gate(change: Callable[[Document], object], path: Path) -> Path:
    found = gate_result()
    change(found)
    path.write_text(json.dumps(signed("precision", found)))
    return path


def figure(found: Document, name: str, phase: str = "prefill") -> Document:
    [one] = [one for one in found["figures"][phase] if one["name"] == name]
    return one


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.update(figures={}, prompts=[]),
        lambda found: found["figures"].pop("decode"),
        lambda found: found["figures"].update(prefill=[]),
        lambda found: found["figures"]["prefill"].pop(),
        lambda found: figure(found, "cosine").update(limit=0.5),
        lambda found: figure(found, "cosine").update(limit=None),
        lambda found: figure(found, "cosine").update(sense="<="),
        lambda found: figure(found, "cosine").update(value=None),
        lambda found: figure(found, "cosine").update(value=0.5),
        lambda found: figure(found, "kl_mean").update(value=1e-9),
        lambda found: figure(found, "non_finite").update(value=1),
        lambda found: found["prompts"][0].update(kl=[None] * 9),
    ],
)
def test_a_gate_holds_on_what_was_measured_alone(
    change: Callable[[Document], object], tmp_path: Path
) -> None:
    path = gate(lambda found: None, tmp_path / "gate.json")
    assert "**Precision gate: holds**" in report(path)
    refused(report, gate(change, path), change)


def test_nan_is_never_held() -> None:
    for sense in (">", ">=", "<="):
        for value in (float("nan"), float("inf"), float("-inf")):
            assert not Figure.of("kl_mean", value, sense, 1.0).held
