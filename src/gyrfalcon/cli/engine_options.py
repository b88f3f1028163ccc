"""The options of every command that runs a model: ranks, device, dtype, quantisation, memory, threads. Other
commands take some of them, too.
"""

import argparse

from gyrfalcon.bounds import ENGINE
from gyrfalcon.cli.option_types import Number, Whole, cache_memory, one_of
from gyrfalcon.device import ACCELERATORS, CHOICES
from gyrfalcon.engine_config import DTYPES, QUANTS, EngineConfig


def add_model(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """The argument MODEL."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?" if optional else None,
        help="a Hugging Face folder, a cut, a hub id or nestling",
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """All options that engine_config() reads, as a group of their own."""
    group = parser.add_argument_group("how the model runs")
    add_world_size(group, "ranks that share the model (default: the cut's own, else 1)")
    group.add_argument(
        "--device",
        type=one_of("--device", *CHOICES),
        default="auto",
        metavar="|".join(CHOICES),
        help=f"auto uses {' or '.join(ACCELERATORS)} where available",
    )
    add_dtype(group, "the dtype to compute in; auto is the checkpoint's")
    add_quant(group, "quantise the matrices when they are loaded")
    add_adapter(group)
    group.add_argument(
        "--max-len",
        type=Whole("--max-len", ENGINE["max_len"]),
        metavar="N",
        help="the longest sequence, prompt and output together (default: what the model's positions allow)",
    )
    group.add_argument(
        "--cache-memory",
        type=cache_memory,
        metavar="BYTES|FRACTION",
        help="memory of each rank's KV cache: from 1 byte to 1000 TB (2GB), or a share of what is "
        "free once the weights are loaded (0.5), above 0, at most 1 (default 0.25 on a CPU, 0.8 on a GPU)",
    )
    group.add_argument(
        "--threads",
        type=Whole("--threads", ENGINE["threads"]),
        metavar="N",
        help="CPU threads of each rank (default: the cores, divided among the ranks)",
    )
    group.add_argument(
        "--rank-timeout",
        metavar="SECONDS",
        type=Number("--rank-timeout", ENGINE["rank_timeout"]),
        default=10.0,
        help="how long a rank may say nothing, or all stand still, before they are ended (default 10)",
    )


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """The settings of the engine that these options ask for."""
    return EngineConfig(
        model=args.model,
        world_size=args.world_size,
        device=args.device,
        dtype=args.dtype,
        quant=args.quant,
        adapter=args.adapter,
        max_len=args.max_len,
        cache_memory=args.cache_memory,
        threads=args.threads,
        rank_timeout=args.rank_timeout,
    )


def add_world_size(to: argparse._ActionsContainer, text: str, required: bool = False) -> None:
    """-w, with `text` as its help."""
    to.add_argument(
        "-w",
        "--world-size",
        type=Whole("-w", ENGINE["world_size"]),
        metavar="N",
        required=required,
        help=text,
    )


def add_dtype(to: argparse._ActionsContainer, text: str) -> None:
    """--dtype, with `text` as its help."""
    to.add_argument(
        "--dtype",
        type=one_of("--dtype", *DTYPES),
        default="auto",
        metavar="|".join(DTYPES),
        help=text,
    )


def add_speculation(to: argparse._ActionsContainer) -> None:
    """--num-speculative-tokens."""
    to.add_argument(
        "--num-speculative-tokens",
        type=Whole("--num-speculative-tokens", ENGINE["num_speculative_tokens"]),
        metavar="N",
        default=0,
        help="draft at most N tokens a step for each text, those that followed the same words in it before; "
        "changes no text, pays where texts repeat themselves or their prompts (default 0: none)",
    )


def add_adapter(to: argparse._ActionsContainer) -> None:
    """--adapter."""
    to.add_argument(
        "--adapter",
        metavar="DIR|.|none",
        help="merge a LoRA adapter saved by peft into the weights, such as --adapter sft/checkpoint-500; "
        ". is the one beside the weights, none ignores that one (default: refuse one beside the weights)",
    )


def add_quant(to: argparse._ActionsContainer, text: str) -> None:
    """--quant; its help begins with `text`."""
    to.add_argument(
        "--quant",
        type=one_of("--quant", *QUANTS),
        default="none",
        metavar="|".join(QUANTS),
        help=f"{text}, embedding and head to 8 bits; int4 has a scale for each 64 weights of a row, "
        "int4-32 and int4-128 for each 32 and 128 (default none: as stored)",
    )
