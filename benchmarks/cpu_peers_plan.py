"""The options of benchmarks/cpu_peers.py, what is run without them, and what that needs."""

import argparse
import os
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import psutil
from cpu_peers_model import NUM_WORDS, POSITIONS, SHAPES, VOCAB_SIZE, check_shape, parameters
from cpu_peers_results import OURS

from gyrfalcon.bounds import Bounds
from gyrfalcon.cli.option_types import Whole, Wholes
from gyrfalcon.console.format import shown_bytes
from gyrfalcon.errors import UsageError
from gyrfalcon.model.architectures import config_from_json

PRECISIONS = ("bf16", "int8", "int4")
COUNTS = Bounds(1, 1_000_000)  # of tokens, rounds, seconds, what is not checked further
LIBRARY_BYTES = 1 << 30  # of memory that an engine takes without a model
BASE_BYTES = 2 * LIBRARY_BYTES  # with cache and intermediate results, at least


@dataclass(frozen=True, slots=True)
class Needs:
    """What to know of an engine before it is started."""

    form_bytes: Mapping[str, float]  # precision it has → disk for its own files, a weight
    memory_bytes: float  # a weight, at most, while it prepares or runs


ENGINES = {
    OURS: Needs({"bf16": 0, "int8": 1.01, "int4": 0.6}, 3),
    "transformers": Needs({"bf16": 0}, 6),
    "llama.cpp": Needs({"bf16": 2, "int8": 3.1, "int4": 2.6}, 4),  # bf16 on the way to the others
    "openvino": Needs({"bf16": 2, "int8": 1.01, "int4": 0.6}, 9),
    "ctranslate2": Needs({"bf16": 2, "int8": 1.01}, 9),
    "vllm": Needs({"bf16": 2, "int8": 1.1, "int4": 0.8}, 9),
    "ik_llama.cpp": Needs({"bf16": 2, "int8": 3.1, "int4": 2.6}, 5),
}


@dataclass(frozen=True, slots=True)
class Defaults:
    """What to run where no option says otherwise."""

    models: str
    engines: str
    prompt_len: int
    steps: int
    rounds: int


FULL = Defaults(",".join(SHAPES), ",".join(ENGINES), prompt_len=512, steps=128, rounds=5)
QUICK = Defaults("A", f"{OURS},transformers,llama.cpp", prompt_len=128, steps=16, rounds=2)
LONG = replace(FULL, models="A,B", prompt_len=POSITIONS, steps=16, rounds=2)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run. Lengths in tokens."""

    configs: Mapping[str, dict[str, object]]  # of each model, as its config.json has it
    engines: Sequence[str]
    pythons: Mapping[str, str]  # of the engines with an environment of their own
    precisions: Sequence[str]
    batches: Sequence[int]
    prompt_len: int
    steps: int
    rounds: int
    threads: int
    silence_seconds: float

    @property
    def total_len(self) -> int:
        """The most tokens of a sequence."""
        return _total_len(self.prompt_len, self.steps)

    def engines_of(self, model: str) -> list[str]:
        """Those that run a model."""
        return [engine for engine in self.engines if engine == OURS or not SHAPES[model].alone]

    def pairs(self, model: str, missing: Collection[str] = ()) -> list[tuple[str, str]]:
        """Each precision with each engine that has it and runs the model; `missing` are engines, or
        "engine precision".
        """
        return [
            (precision, engine)
            for precision in self.precisions
            for engine in self.engines_of(model)
            if precision in ENGINES[engine].form_bytes
            and not {engine, f"{engine} {precision}"} & set(missing)
        ]


def parse_options(argv: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    """The command line; UsageError for impossible values."""
    parser = argparse.ArgumentParser(
        prog="cpu_peers.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    one = parser.add_mutually_exclusive_group()
    one.add_argument(
        "--quick", action="store_true", help="one model, three engines, shorter, fewer rounds"
    )
    one.add_argument(
        "--long",
        action="store_true",
        help=f"prompts of {LONG.prompt_len} tokens, where attention counts: models {LONG.models}, "
        f"{LONG.steps} steps, {LONG.rounds} rounds",
    )
    add("--models", help=f"of {_both('models')}")
    add("--engines", help=f"of {_both('engines')}")
    add("--precisions", default=",".join(PRECISIONS))
    add("--batches", type=Wholes("--batches", COUNTS), default=(1, 8), help="sequences: 1,8")
    add("--prompt-len", type=Whole("--prompt-len", COUNTS), help=f"tokens: {_both('prompt_len')}")
    add("--steps", type=Whole("--steps", COUNTS), help=f"decoded tokens: {_both('steps')}")
    add("--rounds", type=Whole("--rounds", COUNTS), help=f"turns of each engine: {_both('rounds')}")
    add("--threads", type=Whole("--threads", COUNTS), help="and cores in use (default: all cores)")
    add("--layers", type=Whole("--layers", COUNTS), help="not the model's own, to try things out")
    add("--hidden", type=Whole("--hidden", COUNTS), help="size, likewise")
    add(
        "--vocab",
        type=Whole("--vocab", Bounds(NUM_WORDS, COUNTS.most)),
        default=VOCAB_SIZE,
        help="likewise",
    )
    add("--python", action="append", default=[], metavar="ENGINE=PYTHON", help="its interpreter")
    add(
        "--silence",
        type=Whole("--silence", COUNTS),
        default=1800,
        help="seconds to wait for an answer",
    )
    add("--folder", type=Path, help="where to work (default: the temporary folder)")
    add("--json", type=Path, metavar="FILE", help="write the result")
    add("--resume", action="store_true", help="keep the rounds that --json FILE has already")
    add("--plot", type=Path, metavar="FILE", help="draw it, .png or .svg; needs matplotlib")
    return parser.parse_args(argv)


def _both(field: str) -> str:
    """A default, and that of --quick."""
    return f"{asdict(FULL)[field]} (quick: {asdict(QUICK)[field]})"


def plan_of(options: argparse.Namespace) -> Plan:
    """The options with their defaults; UsageError for impossible ones."""
    default = QUICK if options.quick else LONG if options.long else FULL
    if options.resume and not options.json:
        raise UsageError("--json FILE to --resume", "none", "name the file that holds the rounds")
    if options.plot and not find_spec("matplotlib"):
        raise UsageError("matplotlib for --plot", "none installed", "pip install matplotlib")
    models = _chosen("--models", options.models or default.models, SHAPES)
    prompt_len, steps = options.prompt_len or default.prompt_len, options.steps or default.steps
    positions = max(POSITIONS, _total_len(prompt_len, steps))
    plan = Plan(
        configs={model: _config(model, options, positions) for model in models},
        engines=_chosen("--engines", options.engines or default.engines, ENGINES),
        pythons=_pythons(options.python),
        precisions=_chosen("--precisions", options.precisions, PRECISIONS),
        batches=options.batches,
        prompt_len=prompt_len,
        steps=steps,
        rounds=options.rounds or default.rounds,
        threads=_threads(options.threads),
        silence_seconds=options.silence,
    )
    for model in models:
        if not plan.engines_of(model):
            got = ", ".join(plan.engines)
            raise UsageError(
                f"{OURS} among --engines for model {model}", got, "name it, or other --models"
            )
    return plan


def _total_len(prompt_len: int, steps: int) -> int:
    return prompt_len + 1 + steps


def _chosen(option: str, text: str, known: Sequence[str] | Mapping[str, object]) -> list[str]:
    """Words with commas between them, each one of `known`."""
    words = list(dict.fromkeys(text.split(",")))
    for word in words:
        if word not in known:
            raise UsageError(f"{option} of {', '.join(known)}", repr(word), "choose among these")
    return words


def _config(model: str, options: argparse.Namespace, positions: int) -> dict[str, object]:
    shape = SHAPES[model]
    shape = replace(
        shape,
        num_layers=options.layers or shape.num_layers,
        hidden_size=options.hidden or shape.hidden_size,
    )
    check_shape(shape)
    return shape.config(options.vocab, positions)


def _pythons(texts: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        engine, _, path = text.partition("=")
        if engine not in ENGINES or shutil.which(path) is None:
            wanted = f"--python ENGINE=PYTHON, an engine of {', '.join(ENGINES)} and a program"
            raise UsageError(wanted, repr(text), "correct the option")
        found[engine] = path
    return found


def _threads(asked: int | None) -> int:
    cores = len(os.sched_getaffinity(0))
    if asked is not None and asked > cores:
        raise UsageError(
            f"at most {cores} --threads, the cores usable here", str(asked), "lower it"
        )
    return asked or cores


def check_room(plan: Plan, folder: Path) -> None:
    """Says on standard error what the most demanding model needs; UsageError where there is less."""
    needs = [_needs(plan, model) for model in plan.configs]
    disk, memory = (max(each) for each in zip(*needs, strict=True))
    free_disk = shutil.disk_usage(folder).free
    free_memory = psutil.virtual_memory().available
    print(
        f"needs {shown_bytes(disk)} in {folder}, {shown_bytes(free_disk)} are free; "
        f"up to {shown_bytes(memory)} of memory, {shown_bytes(free_memory)} are free",
        file=sys.stderr,
    )
    if disk > free_disk:
        do = "name another --folder, or fewer --models, --engines or --layers"
        raise UsageError(f"{shown_bytes(disk)} in {folder}", f"{shown_bytes(free_disk)} free", do)
    if memory > free_memory:
        do = "name fewer --models, --engines, --batches or --layers, or close other programs"
        raise UsageError(f"{shown_bytes(memory)} of memory", f"{shown_bytes(free_memory)} free", do)


def _needs(plan: Plan, model: str) -> tuple[int, int]:
    """Bytes of disk and of memory."""
    weights = parameters(plan.configs[model])
    forms = sum(ENGINES[engine].form_bytes[precision] for precision, engine in plan.pairs(model))
    memory = max(ENGINES[each].memory_bytes for each in plan.engines_of(model))
    base = max(BASE_BYTES, LIBRARY_BYTES + _step_bytes(plan, model))
    return int(weights * (2 + forms)), base + int(weights * memory)


def _step_bytes(plan: Plan, model: str) -> int:
    """Of keys, values and what the MLP computes, twice, in float32, of the most tokens at a time."""
    config = config_from_json(plan.configs[model])
    cached = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return max(plan.batches) * plan.total_len * 4 * (cached + 2 * config.ffn_size)
