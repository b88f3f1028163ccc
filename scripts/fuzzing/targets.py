"""The files that gyrfalcon reads: how a whole one is made, how it is damaged, and its readers."""

import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checkpoints import make_checkpoint
from exams import answer, write_rows
from forms import FORMS
from results import exam_result, gate_result, perplexity_result, signed, sweep
from tokenizers_ import make_tokenizer

from fuzzing import mutations
from gyrfalcon import plan
from gyrfalcon.checkpoint.adapter import open_adapter
from gyrfalcon.checkpoint.source import Checkpoint, open_checkpoint, read_local
from gyrfalcon.checkpoint.tokenizer import ends_of, load_tokenizer
from gyrfalcon.cut.cut import cut
from gyrfalcon.cut.verify import verify
from gyrfalcon.errors import RequestError
from gyrfalcon.files.text import contents, prompts_in
from gyrfalcon.jobs.job_file import JOB, Job, read_job
from gyrfalcon.jobs.plan import Part, Plan
from gyrfalcon.jobs.rows import BadRow
from gyrfalcon.jobs.source import Start, rows_from, source_files
from gyrfalcon.jobs.task import COLUMNS, SCORE, Task
from gyrfalcon.load.trace import read_trace
from gyrfalcon.measure.mmlu.exam import read_exam
from gyrfalcon.measure.mmlu.files import JOURNAL, unfinished
from gyrfalcon.measure.mmlu.result import ExamResult
from gyrfalcon.measure.mmlu.score import answer_json
from gyrfalcon.measure.speed.baseline import baselines
from gyrfalcon.measure.speed.files import Files
from gyrfalcon.model.architectures import config_from_file, make_layout
from gyrfalcon.parallel.shards import Share, shares_of
from gyrfalcon.plan.hardware import hardware_in
from gyrfalcon.plan.models import planned_model
from gyrfalcon.plan.trace import TraceFile
from gyrfalcon.report.document import make_report, markdown
from gyrfalcon.report.files import read_results
from gyrfalcon.text.chat import Message
from gyrfalcon.text.tokenizer import Tokenizer

SMALL: Mapping[str, Any] = dict(
    hidden_size=64, num_attention_heads=8, num_kv_heads=2, num_hidden_layers=1, vocab_size=521
)
EVIL = "open(__file__ + '.ran', 'w').close()\n"
IDENTITY = {"model": "m", "shots": 5}
CODE = ("configuration_falcon.py", "modeling_falcon.py", "evil.py")
TRACE = (
    '{"arrival_s": 0.5, "prompt_tokens": 40, "output_tokens": 5, "prefix_ids": [46, 47]}\n'
    '{"arrival_s": 0.7, "prompt_tokens": 12, "output_tokens": 7, "priority": 1, "deadline": 3}\n'
)
ARRIVALS = (
    '{"prompt": "Once upon", "output_len": 5, "arrival": 0.5}\n'
    '{"input_len": 3, "output_len": 2, "arrival": 1}\n'
)

ROWS = (
    '{"id": "a", "prompt": "Once upon", "continuation": " a time"}\n'
    '{"id": 7, "prompt": [46, 47], "continuation": [48], "other": null}\n'
)

Mutate = Callable[[bytes, random.Random], bytes]
Read = Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of file. `make` fills an empty folder and returns the file that is damaged; `readers` get
    its path.
    """

    summary: str
    make: Callable[[Path], Path]
    mutate: Mutate
    readers: tuple[Read, ...]


def _folder(folder: Path, form: str = "safetensors") -> Path:
    """A small checkpoint with a tokenizer, code that must not run, and a link that leads out."""
    outside = folder.with_name(f"{folder.name}-outside")
    make_checkpoint(folder, "40b", **SMALL)
    make_tokenizer(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 11, "max_length": 20}')
    for name in CODE:
        (folder / name).write_text(EVIL)
    weights = folder / "model.safetensors"
    outside.mkdir()
    if form == "safetensors":
        shutil.move(weights, outside / "weights")
        weights.symlink_to(outside / "weights")
        return folder
    source = open_checkpoint(folder).source
    state = {name: source.read(name).clone() for name in source.names()}
    weights.unlink()
    FORMS[form](folder, state)
    return folder


def _config(folder: Path) -> Path:
    return _folder(folder) / "config.json"


def _index(folder: Path) -> Path:
    _folder(folder, "sharded safetensors")
    (folder / "link.safetensors").symlink_to(folder / "model-00001-of-00003.safetensors")
    return folder / "model.safetensors.index.json"


def _weights(folder: Path) -> Path:
    path = _folder(folder) / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    return path


def _pickle(folder: Path) -> Path:
    return _folder(folder, "bin") / "pytorch_model.bin"


def _tokenizer(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        _folder(folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        more = {"chat_template": template, "bos_token": {"content": "<|endoftext|>"}}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | more))
        return folder / name

    return make


def _manifest(folder: Path) -> Path:
    source = folder.with_name(f"{folder.name}-source")
    make_checkpoint(source, "40b", dtype=torch.bfloat16, **SMALL)
    make_tokenizer(source)
    cut(source, folder, 2)
    for name in CODE:
        (folder / name).write_text(EVIL)
    return folder / "manifest.json"


def _adapter(folder: Path) -> Path:
    from adapters import layers_of, make_pairs, save_adapter
    from checkpoints import make_model

    model = make_model("40b", **SMALL)
    save_adapter(folder, make_pairs(model, layers_of(model, "query_key_value")))
    return folder / "adapter_config.json"


def _result(kind: str, found: Callable[[], "dict[str, object]"]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        folder.mkdir()
        path = folder / "result.json"
        path.write_text(json.dumps(signed(kind, found())))
        return path

    return make


def _exam(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        folder.mkdir()
        return write_rows(folder) / name

    return make


def _journal(folder: Path) -> Path:
    folder.mkdir()
    write_rows(folder)
    lines = [IDENTITY, *(answer_json(answer("birds", n, t, "B")) for n, t in enumerate("ADB"))]
    path = folder / JOURNAL
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _hardware(folder: Path) -> Path:
    shipped = json.loads(Path(plan.__file__).with_name("hardware.json").read_text())
    one = json.dumps(shipped | {"hardware": shipped["hardware"][:1]})
    return _text("card.json", one)(folder)


def _text(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        folder.mkdir()
        (folder / name).write_bytes(text.encode())
        return folder / name

    return make


# ---- readers ----


def _read_config(path: Path) -> None:
    config = config_from_file(path)
    for spec in make_layout(config, has_head=not config.tied).tensors[:500]:
        assert spec.elements > 0
    planned_model(str(path))


def _read_weights(path: Path) -> None:
    """All that loading reads of a folder: every rank's part of every tensor."""
    checkpoint = open_checkpoint(path.parent)
    for ranks in (1, 2):
        for share in shares_of(checkpoint.config, ranks):
            _read_parts(checkpoint, share)


def _read_parts(checkpoint: Checkpoint, share: Share) -> None:
    for spec in checkpoint.layout.stored:
        read_local(checkpoint, spec, share).sum()


def _read_tokenizer(path: Path) -> None:
    """The tokenizer and all that is asked of it before a first answer."""
    checkpoint = open_checkpoint(path.parent)
    tokenizer = load_tokenizer(checkpoint)
    ends_of(checkpoint, tokenizer)
    if tokenizer is not None:
        _use(tokenizer)


def _use(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Once upon a time, é 🦅 <|endoftext|>\n\n  x")
    tokenizer.decode(ids)
    tokenizer.least_tokens("a text")
    try:
        tokenizer.chat_ids([Message("user", "Name a bird.")])
    except RequestError:
        return  # a template may refuse a conversation


def _verify(path: Path) -> None:
    verify(path.parent)


def _report(path: Path) -> None:
    markdown(make_report(read_results([str(path)], [str(path)]), beside_guide=True))


def _resume(path: Path) -> None:
    files = Files(None, path)
    files.resume(files.earlier(), signed("speed", {}), 1)


def _read_journal(path: Path) -> None:
    unfinished(path.parent, IDENTITY, read_exam(path.parent, "test"))


def _read_exam(path: Path) -> None:
    read_exam(path.parents[1] if path.suffix == ".csv" else path.parent, "test")


def _read_prompts(path: Path) -> None:
    prompts_in(contents(path), str(path))


def _read_rows(path: Path) -> None:
    for file in source_files(str(path)):
        for _, row in rows_from(file, Start(), COLUMNS, scored=True):
            if isinstance(row, BadRow):
                raise row.error


def _job(folder: Path) -> Path:
    prompts = _text("rows.jsonl", ROWS)(folder)
    plan = Plan([Part(0, 0, Start(), 1), Part(1, 0, Start(len(ROWS) // 2, 2), 1)], {}, 0)
    settings: dict[str, object] = {**Task(SCORE).to_json(), "seed": None}
    (folder / JOB).write_text(Job.begin(settings, source_files(str(prompts)), plan).to_json())
    return folder / JOB


def _read_job(path: Path) -> None:
    """A job as a worker finds it, and the rows of its parts."""
    job = read_job(path.parent)
    assert job is not None
    job = job.reading(source_files(str(path.parent / "rows.jsonl")), path.parent)
    columns = job.task.columns
    for part in job.plan.parts:
        list(rows_from(job.files[part.file].source(), part.start, columns, scored=True))


def _json(summary: str, make: Callable[[Path], Path], *readers: Read) -> Target:
    return Target(summary, make, mutations.mutate_json, readers)


TARGETS: Mapping[str, Target] = {
    "config": _json("config.json of a checkpoint", _config, _read_config, _read_weights),
    "index": _json("model.safetensors.index.json", _index, _read_weights),
    "safetensors": Target(
        "the header of a safetensors file", _weights, mutations.mutate_safetensors, (_read_weights,)
    ),
    "pickle": Target("pytorch_model.bin", _pickle, mutations.mutate_bytes, (_read_weights,)),
    "tokenizer": _json("tokenizer.json", _tokenizer("tokenizer.json"), _read_tokenizer),
    "tokenizer-config": _json(
        "tokenizer_config.json", _tokenizer("tokenizer_config.json"), _read_tokenizer
    ),
    "generation-config": _json(
        "generation_config.json", _tokenizer("generation_config.json"), _read_tokenizer
    ),
    "manifest": Target(
        "manifest.json of a cut", _manifest, mutations.mutate_manifest, (_read_weights, _verify)
    ),
    "adapter": _json("adapter_config.json", _adapter, lambda path: open_adapter(path.parent)),
    "speed": _json(
        "a result of speed",
        _result("speed", lambda: sweep(lengths=(3,), fits=True).to_json()),
        *(_report, _resume, lambda path: baselines(str(path), "falcon-x")),
    ),
    "mmlu": _json(
        "a result of mmlu", _result("mmlu", lambda: exam_result(number=1)), _report, ExamResult.load
    ),
    "precision": _json("a result of precision", _result("precision", gate_result), _report),
    "perplexity": _json(
        "a result of perplexity", _result("perplexity", perplexity_result), _report
    ),
    "journal": Target(
        "the journal of an mmlu run", _journal, mutations.mutate_lines, (_read_journal,)
    ),
    "csv": Target(
        "questions of an exam", _exam("test/birds_test.csv"), mutations.mutate_bytes, (_read_exam,)
    ),
    "categories": _json("categories.json of an exam", _exam("categories.json"), _read_exam),
    "prompts": Target(
        "a file of prompts",
        _text("prompts.txt", "Once upon a time\nName a bird. é 🦅\n\nA third\n"),
        mutations.mutate_bytes,
        (_read_prompts,),
    ),
    "rows": Target(
        "rows of prompts", _text("rows.jsonl", ROWS), mutations.mutate_lines, (_read_rows,)
    ),
    "job": _json("job.json of many prompts", _job, _read_job),
    "trace": Target(
        "a trace of requests for plan",
        _text("trace.jsonl", TRACE),
        mutations.mutate_lines,
        (lambda path: TraceFile(str(path)).check(2048),),
    ),
    "load-trace": Target(
        "requests for load",
        _text("trace.jsonl", ARRIVALS),
        mutations.mutate_lines,
        (lambda path: read_trace(str(path)),),
    ),
    "hardware": _json("a hardware file for plan", _hardware, hardware_in),
}
