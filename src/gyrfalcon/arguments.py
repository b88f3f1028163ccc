"""What the gyrfalcon command can be told: its commands, their arguments and the help that explains them.

Imports nothing that computes, so that --help and wrong usage answer at once.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from gyrfalcon import __version__
from gyrfalcon.errors import UsageError
from gyrfalcon.options import cache_memory, number, one_of, size, whole, wholes
from gyrfalcon.settings import QUANTS

PLANNED = ("plan", "serve")
DTYPES = ("auto", "bf16", "fp16", "fp32")

DESCRIPTION = "Run Falcon language models, cut for any number of ranks."
EPILOG = """\
examples:
  gyrfalcon cut falcon-40b falcon-40b-4 -w 4          cut a Hugging Face folder for 4 ranks
  gyrfalcon verify falcon-40b-4                       check every file of the cut
  gyrfalcon generate falcon-40b-4 --prompt "Once"     continue a prompt on those 4 ranks
  gyrfalcon generate falcon-40b -w 2 --prompt "Once"  straight from the folder, cut in memory for 2 ranks

MODEL is a Hugging Face folder, a cut, a hub id such as tiiuae/falcon-7b (needs gyrfalcon[hub]), or
nestling, the small model that ships with the package.
exit codes: 0 done; 1 a check did not hold; 2 wrong usage or bad input; 130 interrupted.
`gyrfalcon COMMAND --help` explains a command."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of one command, `words` as they were typed; raises UsageError. --help and --version
    print and end the process.
    """
    _check_command(argv[0] if argv else "")
    args, unknown = _parser().parse_known_args(argv)
    if args.command == "generate":
        _take_late_word(args, unknown)
    if unknown:
        command = f"gyrfalcon {args.command}"
        raise UsageError(
            f"arguments that {command} takes", repr(unknown[0]), f"see {command} --help"
        )
    if args.command == "generate":
        _settle_prompts(args)
    if args.command == "mmlu":
        _settle_runs(args)
    args.words = tuple(argv)
    return args


def _check_command(word: str) -> None:
    if word in COMMANDS or word.startswith("-"):
        return
    got = f"{word}, which is not built yet" if word in PLANNED else repr(word) if word else "none"
    raise UsageError(f"a command ({', '.join(COMMANDS)})", got, "see gyrfalcon --help")


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose own errors are UsageErrors."""

    def error(self, message: str) -> NoReturn:
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            raise UsageError(missing, "none", f"see {self.prog} --help")
        option = message.removeprefix("argument ").removesuffix(": expected one argument")
        if len(option) < len(message) - len("argument "):
            option = option.split("/")[-1]
            raise UsageError(f"a value for {option}", "none", f"write {option}=VALUE")
        raise UsageError(f"arguments as in {self.prog} --help", message, "mend them")


def _parser() -> _Parser:
    parser = _Parser(
        prog="gyrfalcon",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gyrfalcon {__version__}")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    for name, (summary, add_arguments) in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=add_arguments.__doc__, allow_abbrev=False
        )
        add_arguments(command)
        command.add_argument(
            "--json", metavar="FILE", help="also write the whole result as JSON; - for stdout alone"
        )
    return parser


def _add_cut(parser: argparse.ArgumentParser) -> None:
    """Cut a Hugging Face checkpoint for N ranks: CUT/tokenizer, CUT/part_model/<rank> and CUT/manifest.json.

    Streams tensor by tensor, so memory does not grow with the model. Run the same command again after an
    interruption and it goes on where it stopped.
    """
    parser.add_argument(
        "source", metavar="HF", help="a Hugging Face folder (.safetensors or .bin) or a hub id"
    )
    parser.add_argument("target", metavar="CUT", help="the folder to write")
    _add_world_size(parser, "how many ranks to cut for", required=True)
    _add_dtype(parser, "the dtype to store; auto keeps the checkpoint's")
    _add_quant(
        parser, "round the matrices and store them so, as the other commands do when they load"
    )
    _add_writing(parser)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    """Check every file of a cut against its manifest: size, checksum, tensor names and shapes.

    Prints each fault; exits 1 when there is one.
    """
    parser.add_argument("cut", metavar="CUT", help="a folder written by gyrfalcon cut")


def _add_recut(parser: argparse.ArgumentParser) -> None:
    """Cut a cut again for another number of ranks, without the checkpoint it came from."""
    parser.add_argument("cut", metavar="CUT", help="a folder written by gyrfalcon cut")
    parser.add_argument("target", metavar="NEW", help="the folder to write")
    _add_world_size(parser, "how many ranks to cut for", required=True)
    _add_writing(parser)


def _add_merge(parser: argparse.ArgumentParser) -> None:
    """Put a cut together again: back to a Hugging Face folder, bit for bit."""
    parser.add_argument("cut", metavar="CUT", help="a folder written by gyrfalcon cut")
    parser.add_argument("target", metavar="HF", help="the folder to write")
    parser.add_argument(
        "--dequantise",
        action="store_true",
        help="merge a cut that is rounded or in another dtype than its source, too; says what was lost",
    )
    _add_writing(parser)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    """List which rank holds which tensor, which range of it, and how many bytes that takes."""
    parser.add_argument(
        "model", metavar="MODEL", help="a Hugging Face folder, a cut, a hub id or nestling"
    )
    _add_world_size(parser, "for so many ranks (default: the cut's own, else 1)")


def _add_generate(parser: argparse.ArgumentParser) -> None:
    """Continue prompts. The text streams to standard output; all else goes to standard error."""
    parser.add_argument(
        "model", metavar="MODEL", help="a Hugging Face folder, a cut, a hub id or nestling"
    )
    parser.add_argument(
        "stdin", metavar="-", nargs="?", help="one prompt from each line of standard input"
    )
    parser.add_argument(
        "--prompt", metavar="TEXT", action="append", help="a prompt; may be given several times"
    )
    parser.add_argument("--prompt-file", metavar="FILE", help="one prompt from each line of a file")
    parser.add_argument(
        "--chat", action="store_true", help="wrap each prompt as the model's chat form wants it"
    )
    _add_sampling(
        parser.add_argument_group("how the next token is chosen (default: always the likeliest)")
    )
    _add_engine(parser.add_argument_group("how the model runs"))


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    def add(option: str, kind: Callable[[str], object], default: object, text: str) -> None:
        suffix = "" if default is None else f" (default {default})"
        group.add_argument(option, metavar="N", type=kind, default=default, help=text + suffix)

    add("--max-new-tokens", whole("--max-new-tokens", 0), 128, "stop after so many")
    add(
        "--temperature",
        number("--temperature"),
        0.0,
        "0 takes the likeliest; higher is more varied",
    )
    add("--top-k", whole("--top-k", 0), 0, "only among the K likeliest; 0: all")
    add(
        "--top-p",
        number("--top-p"),
        1.0,
        "only among the likeliest that together have probability P",
    )
    add("--min-p", number("--min-p"), 0.0, "only those at least P times as likely as the likeliest")
    add(
        "--repetition-penalty",
        number("--repetition-penalty"),
        1.0,
        "above 1: rarer to repeat prompt or output",
    )
    add(
        "--presence-penalty",
        number("--presence-penalty"),
        0.0,
        "taken off the logit of every token put out",
    )
    add(
        "--frequency-penalty",
        number("--frequency-penalty"),
        0.0,
        "taken off once for each time it was put out",
    )
    add("--seed", whole("--seed", 0), None, "makes sampling repeatable")
    add("--n", whole("--n", 1), 1, "so many independent continuations of each prompt")
    add(
        "--logprobs",
        whole("--logprobs", 0),
        None,
        "with --json: log-probabilities of the N likeliest tokens too",
    )
    group.add_argument(
        "--stop",
        metavar="TEXT",
        action="append",
        help="end before this text; may be given several times",
    )
    group.add_argument(
        "--ignore-eos", action="store_true", help="go on after the model's end-of-text"
    )


def _add_engine(group: argparse._ArgumentGroup) -> None:
    _add_world_size(group, "ranks that share the model (default: the cut's own, else 1)")
    group.add_argument(
        "--device",
        type=one_of("--device", "auto", "cpu", "cuda", planned=("npu",)),
        default="auto",
        metavar="auto|cpu|cuda",
        help="auto takes CUDA where there is one",
    )
    _add_dtype(group, "the dtype to compute in; auto is the checkpoint's")
    _add_quant(group, "round the matrices when they are loaded")
    group.add_argument(
        "--max-len",
        type=whole("--max-len", 1),
        metavar="N",
        help="the longest sequence, prompt and output together (default: what the model's positions allow)",
    )
    group.add_argument(
        "--cache-memory",
        type=cache_memory,
        metavar="BYTES|FRACTION",
        help="memory of each rank's KV cache: 2GB, or 0.5 of what is free once the weights are loaded",
    )
    group.add_argument(
        "--threads", type=whole("--threads", 1), metavar="N", help="CPU threads of each rank"
    )


def _add_speed(parser: argparse.ArgumentParser) -> None:
    """Time every pair of an input and an output length, with real text, greedily, end-of-text ignored.

    Writes the guide's table (CSV) and all that was measured (JSON) after every case; run the same
    command again after an interruption and it goes on where it stopped. Without -f and --json nothing
    is written.
    """
    lengths = (32, 64, 128, 256, 512, 1024)
    parser.add_argument(
        "model", metavar="MODEL", help="a Hugging Face folder, a cut, a hub id or nestling"
    )
    parser.add_argument(
        "-f",
        "--csv",
        metavar="CSV",
        help="the guide's table of 8 columns; the JSON goes beside it (CSV's name with .json) unless "
        "--json names another place",
    )
    parser.add_argument(
        "--batch",
        metavar="N",
        type=whole("--batch", 1),
        default=1,
        help="prompts at once (default 1)",
    )
    for option, least, what in (("--in", 1, "prompt"), ("--out", 2, "output")):
        parser.add_argument(
            option,
            dest=f"{what}_lens",
            metavar="N,N,…",
            type=wholes(option, least),
            default=lengths,
            help=f"{what} lengths in tokens (default {','.join(map(str, lengths))})",
        )
    parser.add_argument(
        "--repeats",
        metavar="N",
        type=whole("--repeats", 1),
        default=3,
        help="times each case is timed; the median counts (default 3)",
    )
    parser.add_argument(
        "--baseline",
        metavar="JSON|guide",
        help="also print how many times as fast this is as another speed result, or as the guide's figures",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="measure all again, whatever the files hold"
    )
    _add_engine(parser.add_argument_group("how the model runs"))


def _add_precision(parser: argparse.ArgumentParser) -> None:
    """Put the model's logits beside a reference's, token by token: prefill and decode steps.

    Prints each figure with its limit for the precision the model runs in; exits 1 when one does not
    hold. The curves of every position are in the JSON.
    """
    parser.add_argument(
        "model", metavar="MODEL", help="a Hugging Face folder, a cut, a hub id or nestling"
    )
    parser.add_argument(
        "--reference",
        metavar="auto|transformers|fp32|FILE",
        help="transformers in fp32; our own fp32 path on one rank, which is not independent; or a file "
        "kept with --save-reference (default auto: transformers where it is installed, else fp32)",
    )
    parser.add_argument(
        "--save-reference",
        metavar="FILE",
        help="keep the reference's logits: 4 bytes × vocabulary for each token",
    )
    parser.add_argument(
        "--golden",
        action="store_true",
        help="compare with published log-probabilities instead; known for falcon-7b",
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="a prompt on each line; token ids where the model has no tokenizer (default: shipped texts)",
    )
    parser.add_argument(
        "--decode-steps",
        metavar="N",
        type=whole("--decode-steps", 0),
        default=32,
        help="the last N tokens of a prompt are computed one at a time (default 32)",
    )
    _add_engine(parser.add_argument_group("how the model runs"))


def _add_mmlu(parser: argparse.ArgumentParser) -> None:
    """Put MMLU's questions, or another exam's in its folder layout, and count the right answers.

    Broken off, the same command goes on where it stopped. With two result files and no MODEL:
    compare them question by question.
    """
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a Hugging Face folder, a cut, a hub id or nestling",
    )
    parser.add_argument(
        "-d",
        "--data",
        metavar="DIR",
        help="the folder that holds dev/, val/ and test/, or nestling, the exam that ships with the package",
    )
    parser.add_argument(
        "--protocol",
        type=one_of("--protocol", "hendrycks", "lm-eval", "generate"),
        default="hendrycks",
        metavar="hendrycks|lm-eval|generate",
        help="likeliest letter, prompts as in the original paper (default) or in lm-evaluation-harness; "
        "or the guide's way, the first letter of 32 generated tokens",
    )
    parser.add_argument(
        "--split",
        type=one_of("--split", "test", "val"),
        default="test",
        metavar="test|val",
        help="the guide used val",
    )
    parser.add_argument(
        "--shots",
        type=whole("--shots", 0),
        default=5,
        metavar="N",
        help="worked examples (default 5)",
    )
    parser.add_argument("--subjects", metavar="A,B", help="only these subjects")
    parser.add_argument(
        "--limit",
        type=whole("--limit", 1),
        metavar="N",
        help="only the first N questions of each subject",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        default="test_result",
        help="where the results go (default test_result)",
    )
    parser.add_argument(
        "--golden",
        action="store_true",
        help="also compare with published figures; exits 1 when they differ",
    )
    parser.add_argument(
        "--compare",
        metavar="FILE",
        nargs="+",
        default=[],
        help="an earlier run's mmlu.json to compare with, or two of them and no MODEL",
    )
    _add_engine(parser.add_argument_group("how the model runs"))


def _add_perplexity(parser: argparse.ArgumentParser) -> None:
    """Measure how well the model predicts a text: perplexity, bits per token and per byte.

    A window slides over the text; each token but the first is scored once, given those before it.
    """
    parser.add_argument(
        "model", metavar="MODEL", help="a Hugging Face folder, a cut, a hub id or nestling"
    )
    parser.add_argument("file", metavar="FILE", help="a text file in UTF-8")
    parser.add_argument(
        "--window",
        type=whole("--window", 2),
        metavar="N",
        help="tokens the model sees at a time (default: the longest sequence it takes)",
    )
    parser.add_argument(
        "--stride",
        type=whole("--stride", 1),
        metavar="N",
        help="tokens from one window to the next (default: half a window); fewer: more context, more time",
    )
    _add_engine(parser.add_argument_group("how the model runs"))


def _add_report(parser: argparse.ArgumentParser) -> None:
    """Turn result files (the JSON of speed, mmlu, precision and perplexity) into the guide's tables.

    Writes report.md and report.html, one page with plots that needs nothing from outside. Several
    results of a kind stand side by side.
    """
    parser.add_argument("files", metavar="RESULT", nargs="+", help="a result file, in any order")
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        default="report",
        help="where the report goes (default report)",
    )
    parser.add_argument(
        "--baseline",
        metavar="guide|FILE",
        nargs="+",
        default=[],
        help="compare with the guide's own figures, or with other result files",
    )
    parser.add_argument(
        "--no-plots",
        dest="plots",
        action="store_false",
        help="tables only; plots need matplotlib, the extra gyrfalcon[report]",
    )


def _add_demo(parser: argparse.ArgumentParser) -> None:
    """Run the whole chain on nestling with 2 ranks: cut, verify, generate, speed, exam, precision, report.

    Exits 1 when the exam is under 60 % or the precision gate does not hold.
    """
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        default="gyrfalcon-demo",
        help="where everything is written (default gyrfalcon-demo); an earlier demo's files are replaced",
    )


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    """Show what this machine has: versions, processor, memory, disk, devices, the operators used and why."""


def _add_world_size(to: argparse._ActionsContainer, text: str, required: bool = False) -> None:
    to.add_argument(
        "-w", "--world-size", type=whole("-w", 1), metavar="N", required=required, help=text
    )


def _add_dtype(to: argparse._ActionsContainer, text: str) -> None:
    to.add_argument(
        "--dtype",
        type=one_of("--dtype", *DTYPES),
        default="auto",
        metavar="|".join(DTYPES),
        help=text,
    )


def _add_quant(to: argparse._ActionsContainer, text: str) -> None:
    to.add_argument(
        "--quant",
        type=one_of("--quant", *QUANTS),
        default="none",
        metavar="|".join(QUANTS),
        help=f"{text}, embedding and head to 8 bits; int4 has a scale for 64 weights of a row, int4-32 and "
        "int4-128 for so many (default none: as the checkpoint or cut is)",
    )


def _add_writing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-shard-size",
        type=size("--max-shard-size"),
        default=5_000_000_000,
        metavar="SIZE",
        help="no file of weights becomes larger (default 5GB)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what already is in the folder to write"
    )


def _take_late_word(args: argparse.Namespace, unknown: list[str]) -> None:
    """argparse knows the "-" of standard input only right behind MODEL; options may stand between."""
    words = [word for word in unknown if word == "-" or not word.startswith("-")]
    if words and args.stdin is None:
        args.stdin = words[0]
        unknown.remove(words[0])


def _settle_prompts(args: argparse.Namespace) -> None:
    """Exactly one kind of prompt; standard input becomes the prompt file "-"."""
    if args.stdin not in (None, "-"):
        raise UsageError(
            "a prompt after --prompt", repr(args.stdin), f'write --prompt "{args.stdin}"'
        )
    given = [args.prompt, args.prompt_file, args.stdin]
    if sum(kind is not None for kind in given) != 1:
        names = [
            name
            for name, kind in zip(("--prompt", "--prompt-file", "-"), given, strict=True)
            if kind is not None
        ]
        got = " and ".join(names) or "no prompt"
        raise UsageError(
            "one of --prompt TEXT, --prompt-file FILE and - (standard input)",
            got,
            "give one of them",
        )
    if args.stdin == "-":
        args.prompt_file = "-"
    del args.stdin


def _settle_runs(args: argparse.Namespace) -> None:
    """A MODEL and its exam, perhaps with a run to compare; or two runs alone."""
    most = 2 if args.model is None else 1
    if args.model is None and len(args.compare) != 2:
        raise UsageError(
            "a MODEL, or two result files after --compare", "neither", "give one of them"
        )
    if len(args.compare) > most:
        got = f"{len(args.compare)} after --compare"
        raise UsageError("one result file beside a MODEL, two without", got, "leave some out")
    if args.model is not None and args.data is None:
        raise UsageError("-d DIR, the exam's folder", "none", "add it")


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "cut": ("cut a Hugging Face checkpoint for N ranks", _add_cut),
    "verify": ("check every file of a cut", _add_verify),
    "recut": ("cut a cut for another number of ranks", _add_recut),
    "merge": ("put a cut together again as a Hugging Face folder", _add_merge),
    "inspect": ("list which rank holds what", _add_inspect),
    "generate": ("continue prompts", _add_generate),
    "speed": ("time every pair of an input and an output length", _add_speed),
    "precision": ("the model's logits beside a reference's", _add_precision),
    "mmlu": ("multiple-choice exams, and two runs of one compared", _add_mmlu),
    "perplexity": ("how well the model predicts a text", _add_perplexity),
    "report": ("result files as tables and plots", _add_report),
    "demo": ("the whole chain on nestling, the model that ships with the package", _add_demo),
    "doctor": ("what this machine has and what is made of it", _add_doctor),
}
