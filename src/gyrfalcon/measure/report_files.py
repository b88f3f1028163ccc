"""Reads result files for a report. Every value is checked here, so that tables and plots can rely on
it, and every run gets a label that no other run of its kind has.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from gyrfalcon.errors import ConfigError, UsageError
from gyrfalcon.fields import Fields
from gyrfalcon.measure import result
from gyrfalcon.measure.exam import CATEGORIES
from gyrfalcon.measure.gate import HOLDS, Figure
from gyrfalcon.measure.mmlu_score import Count, answer_from_json
from gyrfalcon.measure.report_runs import (
    Curve,
    ExamScore,
    Gate,
    Head,
    Results,
    Run,
    Speed,
    TextScore,
)
from gyrfalcon.measure.speed_files import Sweep
from gyrfalcon.measure.timing import Row

DO = "name another file"
# What tables and plots take from a row: numbers above zero, any numbers, numbers or none, lists.
POSITIVE = ("response_ms", "first_token_ms", "time_per_token_ms", "tokens_per_second")
NUMBERS = ("inter_token_p50_ms", "inter_token_p90_ms", "inter_token_p99_ms")
OPTIONAL = ("decode_percent_of_limit", "prefill_percent_of_limit")
LISTS = ("peak_memory_bytes", "inter_token_ms")


def read_results(files: Sequence[str], baselines: Sequence[str]) -> Results:
    """Reads result files of any kind; one line of error for each that is none, or is broken."""
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

    def of(kind: str) -> list[tuple[Head, str, Fields]]:
        return [
            (head, label, _inside(_whole(document, head.path), "result"))
            for head, label, document in runs
            if head.kind == kind
        ]

    return Results(
        precision=tuple(Run(head, label, _gate(raw)) for head, label, raw in of("precision")),
        mmlu=tuple(Run(head, label, _exam_score(raw)) for head, label, raw in of("mmlu")),
        speed=tuple(run for head, label, raw in of("speed") for run in _speeds(head, label, raw)),
        perplexity=tuple(
            Run(head, label, _text_score(raw)) for head, label, raw in of("perplexity")
        ),
    )


def _head(path: Path, document: Mapping[str, object], is_baseline: bool) -> Head:
    fields = _whole(document, path)
    model, settings, machine = (_inside(fields, name) for name in ("model", "settings", "machine"))
    cards = [_text(card, machine) for card in _items(machine, "accelerators")]
    device = settings.need(str, "device")
    return Head(
        path=path,
        kind=fields.need(str, "kind"),
        is_baseline=is_baseline,
        model=model.need(str, "name"),
        parameters=model.positive("parameters"),
        ranks=settings.positive("world_size"),
        device=device,
        dtype=settings.need(str, "dtype"),
        quant=settings.need(str, "quant"),
        machine=_machine(cards) if cards and device != "cpu" else machine.need(str, "processor"),
        date=fields.need(str, "date"),
        version=fields.need(str, "gyrfalcon"),
    )


def _check_kinds(heads: Sequence[Head]) -> None:
    """A baseline has something to be compared with."""
    kinds = sorted({head.kind for head in heads if not head.is_baseline})
    for head in heads:
        if head.kind not in kinds:
            wanted = f"a baseline of {' or '.join(kinds)}, as the results are, in {head.path}"
            raise UsageError(wanted, f"a {head.kind} result", DO)


def _machine(cards: Sequence[str]) -> str:
    """["A100", "A100"] → "2 × A100"."""
    counts = Counter(cards)
    return ", ".join(name if count == 1 else f"{count} × {name}" for name, count in counts.items())


def _labels(heads: Sequence[Head]) -> dict[Head, str]:
    """The model's name, and as much more as tells it from the other runs of its kind."""
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


def _speeds(head: Head, label: str, raw: Fields) -> list[Run[Speed]]:
    """A run for each batch size in the file."""
    sweep = Sweep.from_json(raw.raw, head.path)
    if sweep.limits is not None:
        _check_positive(asdict(sweep.limits), tuple(asdict(sweep.limits)), head.path)
    for row in sweep.rows.values():
        _check_row(row, head.path)
    batches = sorted({case.batch for case in sweep.rows})
    return [
        Run(
            head,
            label if len(batches) == 1 else f"{label}, batch {batch}",
            Speed(batch, tuple(r for r in sweep.in_order if r.case.batch == batch), sweep.limits),
        )
        for batch in batches
    ]


def _check_row(row: Row, path: Path) -> None:
    case = Fields(asdict(row.case), str(path))
    for name in case.raw:
        case.positive(name)
    if row.figures is None:
        return
    figures = Fields({"inter_token_ms": [], **_stated(asdict(row.figures))}, str(path))
    _check_positive(figures.raw, POSITIVE, path)
    for name in NUMBERS:
        figures.need(float, name)
    for name in OPTIONAL:
        figures.take(float, name)
    for name in LISTS:
        for value in _items(figures, name):
            Fields({name: value}, str(path)).need(float, name)


def _stated(values: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _check_positive(values: Mapping[str, object], names: Sequence[str], path: Path) -> None:
    for name in names:
        value = values.get(name)
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise UsageError(f"{name} above 0 in {path}", repr(value), DO)


def _exam_score(raw: Fields) -> ExamScore:
    stated, categories = _inside(raw, "subjects"), _inside(raw, "categories")
    counts = {name: _inside(stated, name) for name in stated.raw}
    _check_answers(raw, counts)
    raw.positive("protocol_version")  # what two runs are compared by
    raw.need(str, "exam_sha256")
    home = {name: subject.need(str, "category") for name, subject in counts.items()}
    if strange := set(home.values()) - set(CATEGORIES):
        raise UsageError(f"one of {', '.join(CATEGORIES)} in {raw.where}", strange.pop(), DO)
    return ExamScore(
        protocol=raw.need(str, "protocol"),
        split=raw.need(str, "split"),
        num_examples=raw.need(int, "shots"),
        all=_count(raw),
        macro=raw.take(float, "macro_accuracy"),
        categories={name: _count(_inside(categories, name)) for name in CATEGORIES},
        subjects={
            category: {
                name: _count(subject) for name, subject in counts.items() if home[name] == category
            }
            for category in CATEGORIES
        },
        num_dropped=len(_items(raw, "dropped")),
        document={"result": dict(raw.raw)},
    )


def _check_answers(raw: Fields, subjects: Mapping[str, object]) -> None:
    """As many answers as questions, each to a question of a known subject."""
    predictions = _items(raw, "predictions")
    try:
        answers = [answer_from_json(_object(answer, raw).raw) for answer in predictions]
        known = all(answer.subject in subjects and type(answer.id) is int for answer in answers)
    except (TypeError, ValueError) as error:
        raise UsageError(f"answers in {raw.where}", str(error), DO) from None
    if not known:
        raise UsageError(f"answers to its own questions in {raw.where}", "others", DO)
    if len(answers) != (asked := raw.positive("num_questions")):
        raise UsageError(f"{asked} answers in {raw.where}", str(len(answers)), DO)


def _count(raw: Fields) -> Count:
    right, total = raw.need(int, "right"), raw.need(int, "total")
    if not 0 <= right <= total:
        wanted = f"at most as many right as were asked in {raw.where}"
        raise UsageError(wanted, f"{right} of {total}", DO)
    return Count(right, total)


def _gate(raw: Fields) -> Gate:
    golden, reference = raw.nested("golden"), raw.nested("reference")
    if golden is not None:
        source, model = golden.need(str, "source"), golden.need(str, "model")
        words, columns = (
            f"golden figures of {model}: {source}",
            {"golden": _items(golden, "figures")},
        )
    else:
        reference = reference or _inside(raw, "reference")
        note = (
            "" if reference.need(bool, "independent") else " (not independent: it shares our code)"
        )
        words = reference.need(str, "description") + note
        phases = _inside(raw, "figures")
        columns = {phase: _items(phases, phase) for phase in phases.raw}
    prompts = [] if golden is not None else _items(raw, "prompts")
    return Gate(
        precision=raw.need(str, "precision"),
        reference=words,
        figures={
            phase: tuple(_figure(_object(figure, raw)) for figure in figures)
            for phase, figures in columns.items()
        },
        curves=tuple(_curve(_object(prompt, raw)) for prompt in prompts),
    )


def _figure(raw: Fields) -> Figure:
    sense = raw.need(str, "sense")
    if sense not in HOLDS:
        raise UsageError(f"one of {', '.join(HOLDS)} in {raw.where}", sense, DO)
    return Figure(
        name=raw.need(str, "name"),
        value=raw.take(float, "value"),
        sense=sense,
        limit=raw.take(float, "limit"),
        held=raw.need(bool, "held"),
    )


def _curve(raw: Fields) -> Curve:
    cosine = _items(raw, "cosine")
    numbers = (Fields({"cosine": value}, raw.where).take(float, "cosine") for value in cosine)
    return Curve(tuple(numbers), raw.need(int, "num_decoded"))


def _text_score(raw: Fields) -> TextScore:
    return TextScore(
        file=raw.need(str, "file"),
        window=raw.need(int, "window"),
        stride=raw.need(int, "stride"),
        num_tokens=raw.need(int, "num_tokens"),
        num_bytes=raw.need(int, "num_bytes"),
        perplexity=raw.need(float, "perplexity"),
        bits_per_token=raw.need(float, "bits_per_token"),
        bits_per_byte=raw.need(float, "bits_per_byte"),
    )


def _whole(document: Mapping[str, object], path: Path) -> Fields:
    return Fields(document, str(path))


def _inside(fields: Fields, name: str) -> Fields:
    found = fields.nested(name)
    if found is None:
        raise ConfigError(f"an object {name} in {fields.where}", "none", DO)
    return found


def _items(fields: Fields, name: str) -> list[object]:
    found = fields.raw.get(name)
    if not isinstance(found, list):
        raise ConfigError(f"a list {name} in {fields.where}", repr(found)[:40], DO)
    return found


def _object(value: object, fields: Fields) -> Fields:
    if not isinstance(value, dict):
        raise ConfigError(f"objects in {fields.where}", repr(value)[:40], DO)
    return Fields(value, fields.where)


def _text(value: object, fields: Fields) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"text in {fields.where}", repr(value)[:40], DO)
    return value
