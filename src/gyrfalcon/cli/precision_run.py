"""What `gyrfalcon precision` does: the logits gate against a reference, or published figures of real
weights; a table, the whole result with --json, and exit 1 when a figure is outside its limit.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gyrfalcon.cli.before_loading import opened
from gyrfalcon.cli.engine_options import engine_config
from gyrfalcon.config import ModelConfig
from gyrfalcon.console.format import say_ready, show_result
from gyrfalcon.console.suggestion import path_meant
from gyrfalcon.engine.engine import Engine
from gyrfalcon.engine_config import DECODE_STEPS, EngineConfig
from gyrfalcon.errors import CheckFailed, UsageError
from gyrfalcon.files.output import open_output
from gyrfalcon.files.text import contents, prompts_in
from gyrfalcon.measure.precision import reference_transformers
from gyrfalcon.measure.precision.gate import TITLES, Figure, failures
from gyrfalcon.measure.precision.prompts import check_prompts, default_prompts, read_prompts
from gyrfalcon.measure.precision.published_tokens import check_tokens
from gyrfalcon.measure.precision.reference_file import KINDS, Prompts, Reference
from gyrfalcon.measure.precision.run import (
    judge,
    make_reference,
    our_logits,
    precision_of,
    refuse_quantised,
)
from gyrfalcon.measure.published import TokenFigures, known
from gyrfalcon.measure.result import envelope

CHUNK_TOKENS = 256  # of a prompt in one step: the longest default prompt comes in chunks


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found, for people and for programs."""

    title: str
    columns: dict[str, Sequence[Figure]]
    result: dict[str, object]

    @property
    def failures(self) -> list[str]:
        """The figures that did not hold."""
        return failures(self.columns)


def run(args: argparse.Namespace) -> int:
    """Measures and shows each figure; CheckFailed when one is outside its limit."""
    _check(args)
    saved = _saved(args)
    _check_with_model(args)
    with Engine(_config(args)) as engine:
        findings = _compare_published(engine) if args.published else _gate(engine, args, saved)
        if findings is None:
            return 0
        document = envelope("precision", engine, args.words, findings.result)
    show_result(document, _table(findings), args.json)
    if findings.failures:
        got = ", ".join(findings.failures)
        do = "see where the curves of --json diverge"
        raise CheckFailed("every figure within its limit", f"{got} outside", do)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuses options that contradict each other."""
    stored = _stored(args)
    if stored is not None and not stored.is_file():
        do = path_meant(str(stored), "correct it", "auto", *KINDS)
        raise UsageError("--reference auto, transformers, fp32 or a file", str(stored), do)
    options = {"--save-reference": args.save_reference, "--prompts": args.prompts}
    if args.published:
        options["--reference"], options["--decode-steps"] = args.reference, args.decode_steps
    given = [name for name, value in options.items() if value is not None]
    if given and (args.published or stored is not None):
        alone = "--published" if args.published else f"--reference {stored}"
        do = "it brings its own prompts and figures: leave one out"
        raise UsageError(f"{alone} without {given[0]}", "both", do)


def _check_with_model(args: argparse.Namespace) -> None:
    """Refuses, before the weights are loaded, what does not go with the model."""
    config, stored = engine_config(args), _stored(args)
    checkpoint = opened(config, needs_tokenizer=False)
    if args.published:
        _published(config, checkpoint.config)
    elif stored is not None:
        Reference.open(stored, checkpoint.config)
    else:
        refuse_quantised(checkpoint)
        if args.reference == "transformers":
            reference_transformers.require()
    if args.prompts is not None:
        prompts_in(contents(args.prompts), args.prompts)


def _published(config: EngineConfig, model: ModelConfig) -> tuple[str, TokenFigures]:
    """A published model's name and log-probabilities; UsageError where there are none."""
    published = None if config.merges_adapter else known(model)
    if published is None or published.tokens is None:
        wanted = "a model with published log-probabilities (falcon-7b)"
        got = f"{config.model_name}, for which none are known"
        raise UsageError(wanted, got, "leave --published out to compare with a reference")
    return published.name, published.tokens


def _stored(args: argparse.Namespace) -> Path | None:
    """The reference file, if one is named."""
    return None if args.reference in (None, "auto", *KINDS) else Path(args.reference)


def _saved(args: argparse.Namespace) -> Path | None:
    """Where to keep the reference: it is read again, so only a regular file will do."""
    if args.save_reference is None:
        return None
    return open_output(args.save_reference, "--save-reference", regular=True).file


def _config(args: argparse.Namespace) -> EngineConfig:
    return replace(engine_config(args), max_batch_tokens=CHUNK_TOKENS, max_sequences=1)


def _gate(engine: Engine, args: argparse.Namespace, saved: Path | None) -> Findings | None:
    """None on the ranks that only compute with the first one."""
    stored = _open_stored(engine, args)
    prompts = _prompts(engine, args) if stored is None else stored.prompts
    if not engine.is_first_rank:
        for _ in our_logits(engine, prompts, _decode_steps(args)):
            pass
        return None
    say_ready(engine.description, engine.notes)
    with tempfile.TemporaryDirectory(prefix="gyrfalcon-reference-") as folder:
        if stored is None:
            path = saved or Path(folder, "reference.safetensors")
            make_reference(engine, _kind(args), prompts, path)
            stored = Reference.open(path, engine.model_config)
        outcome = judge(engine, stored, _decode_steps(args))
    note = "" if outcome.origin.independent else " (not independent: it shares our code)"
    title = f"{outcome.precision} against {outcome.origin.description}{note}"
    return Findings(title, dict(outcome.phases), outcome.as_json())


def _open_stored(engine: Engine, args: argparse.Namespace) -> Reference | None:
    path = _stored(args)
    if path is None:
        return None
    reference = Reference.open(path, engine.model_config)
    check_prompts(reference.prompts, path, engine)
    return reference


def _decode_steps(args: argparse.Namespace) -> int:
    return DECODE_STEPS if args.decode_steps is None else int(args.decode_steps)


def _prompts(engine: Engine, args: argparse.Namespace) -> Prompts:
    if args.prompts is not None:
        return read_prompts(Path(args.prompts), engine)
    return default_prompts(engine)


def _kind(args: argparse.Namespace) -> str:
    """Which reference to compute."""
    if args.reference in KINDS:
        return str(args.reference)
    return "transformers" if reference_transformers.is_installed() else "fp32"


def _compare_published(engine: Engine) -> Findings | None:
    name, tokens = _published(engine.config, engine.model_config)
    check = check_tokens(engine, tokens)
    if not engine.is_first_rank:
        return None
    title = f"{precision_of(engine)} against the published figures of {name}: {tokens.source}"
    result = {
        "precision": precision_of(engine),
        "passed": all(figure.held for figure in check.figures),
        "published": {"model": name, **asdict(check), "source": tokens.source},
    }
    return Findings(title, {"published": check.figures}, result)


def _table(findings: Findings) -> list[str]:
    """A figure a line: its value in each column, its limit, and which did not hold."""
    width = max(map(len, TITLES.values()))
    lines = [findings.title, " " * width + "".join(f"{name:>13}" for name in findings.columns)]
    for row in zip(*findings.columns.values(), strict=True):
        limit = "" if row[0].limit is None else f"   {row[0].sense} {row[0].limit:g}"
        mark = "" if all(figure.held for figure in row) else "   FAILED"
        values = "".join(f"{figure.shown:>13}" for figure in row)
        lines.append(f"{TITLES[row[0].name]:<{width}}{values}{limit}{mark}")
    failures = findings.failures
    return [*lines, f"failed: {', '.join(failures)}" if failures else "the gate holds"]
