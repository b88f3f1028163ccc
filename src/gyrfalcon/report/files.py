"""Reads result files for a report. Checks every value, so that tables and plots can rely on it, and
gives every run a label that is unique among runs of its kind.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from gyrfalcon.device import KINDS as DEVICES
from gyrfalcon.device.dtypes import DTYPE_OF_WORD
from gyrfalcon.errors import UsageError
from gyrfalcon.files.json_fields import Fields, shown
from gyrfalcon.measure import result
from gyrfalcon.measure.mmlu.compare import comparison_from_json
from gyrfalcon.measure.mmlu.result import ExamResult
from gyrfalcon.measure.perplexity import Perplexity
from gyrfalcon.measure.precision.result import read_gate
from gyrfalcon.measure.published import model_of
from gyrfalcon.measure.speed.files import Sweep
from gyrfalcon.quant import KINDS
from gyrfalcon.report.runs import (
    Compared,
    ExamScore,
    Results,
    Run,
    RunHeader,
    Speed,
    TextScore,
)

DO = "name another file"
TINY = 1e-300  # stands for a perplexity that is no positive number


def read_results(files: Sequence[str], baselines: Sequence[str]) -> Results:
    """Reads result files of any kind; one error line for each that is not a result, or is broken."""
    documents = []
    for name, is_baseline in [(name, False) for name in files] + [
        (name, True) for name in baselines
    ]:
        path = Path(name)
        document = result.read(path, *result.KINDS)
        documents.append((_head(path, document, is_baseline), document))
    _check_kinds([head for head, _ in documents])
    labels = _labels([head for head, _ in documents])
    runs = [(head, labels[head], document) for head, document in documents]

    def of(kind: str) -> list[tuple[RunHeader, str, Fields]]:
        return [
            (head, label, result.findings(document, head.path))
            for head, label, document in runs
            if head.kind == kind
        ]

    return Results(
        precision=tuple(Run(head, label, read_gate(raw)) for head, label, raw in of("precision")),
        mmlu=tuple(
            Run(head, label, _exam_score(raw, head.model)) for head, label, raw in of("mmlu")
        ),
        speed=tuple(run for head, label, raw in of("speed") for run in _speeds(head, label, raw)),
        perplexity=tuple(
            Run(head, label, _text_score(raw)) for head, label, raw in of("perplexity")
        ),
    )


def _head(path: Path, document: Mapping[str, object], is_baseline: bool) -> RunHeader:
    fields = Fields(document, str(path), result.LARGEST)
    model, settings, machine = (fields.inside(name) for name in ("model", "settings", "machine"))
    name, kind = model_of(document, path)
    cards = machine.list_of(str, "accelerators")
    device = _device(settings)
    return RunHeader(
        path=path,
        kind=fields.need(str, "kind"),
        is_baseline=is_baseline,
        model=name,
        model_kind=kind,
        parameters=model.positive("parameters"),
        ranks=settings.positive("world_size"),
        device=device,
        dtype=settings.one_of(tuple(DTYPE_OF_WORD), "dtype"),
        quant=settings.one_of(("none", *KINDS), "quant"),
        machine=_machine(cards) if cards and device != "cpu" else machine.need(str, "processor"),
        date=_date(fields),
        version=fields.need(str, "gyrfalcon"),
    )


def _device(settings: Fields) -> str:
    """The kind of device; what other hardware computed in its place is no figure of it."""
    device = settings.need(str, "device")
    if device not in DEVICES:
        wanted = f"a result of a device, {', '.join(DEVICES)}, in {settings.where}"
        raise UsageError(wanted, shown(device), DO)
    return device


def _date(fields: Fields) -> str:
    text = fields.need(str, "date")
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"an ISO date in {fields.where}", shown(text), DO) from None
    return text


def _check_kinds(heads: Sequence[RunHeader]) -> None:
    """UsageError for a baseline with nothing to compare."""
    kinds = sorted({head.kind for head in heads if not head.is_baseline})
    for head in heads:
        if head.kind not in kinds:
            wanted = f"a baseline of {' or '.join(kinds)}, as the results are, in {head.path}"
            raise UsageError(wanted, f"a {head.kind} result", DO)


def _machine(cards: Sequence[str]) -> str:
    """["A100", "A100"] → "2 × A100"."""
    counts = Counter(cards)
    return ", ".join(name if count == 1 else f"{count} × {name}" for name, count in counts.items())


def _labels(heads: Sequence[RunHeader]) -> dict[RunHeader, str]:
    """The model's name, and whatever else distinguishes it from other runs of its kind."""
    labels = {}
    for head in heads:
        alike = [other for other in heads if other.kind == head.kind and other.name == head.name]
        words = [head.name]
        for number, trait in enumerate(head.traits):
            if any(other.traits[number] != trait for other in alike):
                words.append(trait)
        if sum(other.traits == head.traits for other in alike) > 1:
            words.append(str(head.path))
        labels[head] = ", ".join(words)
    return labels


def _speeds(head: RunHeader, label: str, raw: Fields) -> list[Run[Speed]]:
    """One run per batch size in the file."""
    sweep = Sweep.from_json(raw)
    batches = sorted({case.batch for case in sweep.rows})
    return [
        Run(
            head,
            label if len(batches) == 1 else f"{label}, batch {batch}",
            Speed(batch, tuple(r for r in sweep.in_order if r.case.batch == batch), sweep.limits),
        )
        for batch in batches
    ]


def _exam_score(raw: Fields, model: str) -> ExamScore:
    found, stated = ExamResult.from_json(raw, model), raw.nested("comparison")
    if stated is None:
        return ExamScore(found)
    other = stated.nested("with")  # earlier versions do not say with what
    file, name = (
        ("an earlier run", "unknown")
        if other is None
        else (
            other.need(str, "file"),
            other.need(str, "model"),
        )
    )
    return ExamScore(found, Compared(file, name, comparison_from_json(stated, found)))


def _text_score(raw: Fields) -> TextScore:
    num_tokens, num_bytes = raw.positive("num_tokens"), raw.positive("num_bytes")
    nats = raw.need(float, "nats")
    found = TextScore(
        file=raw.need(str, "file"),
        window=raw.positive("window"),
        stride=raw.positive("stride"),
        num_tokens=num_tokens,
        num_bytes=num_bytes,
        perplexity=raw.need(float, "perplexity"),
        bits_per_token=raw.need(float, "bits_per_token"),
        bits_per_byte=raw.need(float, "bits_per_byte"),
    )
    follows = Perplexity(nats, num_tokens, num_bytes)
    stated = (found.bits_per_token, found.bits_per_byte, math.log(max(found.perplexity, TINY)))
    bits = (follows.bits_per_token, follows.bits_per_byte, nats / num_tokens)
    if not all(map(_alike, stated, bits)):
        wanted = f"figures that follow from {nats:g} nats in {raw.where}"
        raise UsageError(wanted, "others", DO)
    return found


def _alike(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
