"""What `gyrfalcon perplexity` does: how well a model predicts a text file."""

import argparse
import time
from dataclasses import asdict

from gyrfalcon.cli.before_loading import opened
from gyrfalcon.cli.engine_options import engine_config
from gyrfalcon.console.format import counted, say_ready, show_result
from gyrfalcon.console.progress import bar
from gyrfalcon.engine.build import longest_sequence
from gyrfalcon.engine.engine import Engine
from gyrfalcon.files.text import contents, decoded
from gyrfalcon.measure.perplexity import Perplexity, check_window, perplexity, text_ids
from gyrfalcon.measure.result import envelope


def run(args: argparse.Namespace) -> int:
    """Scores the file and shows its perplexity."""
    text = decoded(contents(args.file), args.file)
    config = engine_config(args)
    longest = longest_sequence(config, opened(config))
    window = longest if args.window is None else args.window
    check_window(window, _stride(window, args.stride), longest)
    with Engine(config) as engine:
        say_ready(engine.description, engine.notes)
        window = engine.max_len if args.window is None else args.window
        stride = _stride(window, args.stride)
        start = time.perf_counter()
        num_tokens = len(text_ids(engine.tokenizer, text)) - 1
        with bar(num_tokens, "token", "perplexity") as shown:
            found = perplexity(engine, text, window, stride, shown.update)
        seconds = None if engine.hardware.emulated else time.perf_counter() - start
        result = _result(args.file, found, window, stride, seconds)
        document = envelope("perplexity", engine, args.words, result)
        show_result(document, _lines(found, window, stride), args.json)
    return 0


def _stride(window: int, asked: int | None) -> int:
    return max(1, window // 2) if asked is None else asked


def _result(
    file: str, found: Perplexity, window: int, stride: int, seconds: float | None
) -> dict[str, object]:
    return {
        "file": file,
        "window": window,
        "stride": stride,
        **asdict(found),
        "perplexity": found.perplexity,
        "bits_per_token": found.bits_per_token,
        "bits_per_byte": found.bits_per_byte,
        "seconds": seconds,
    }


def _lines(found: Perplexity, window: int, stride: int) -> list[str]:
    size = f"{counted(found.num_tokens, 'token')}, {counted(found.num_bytes, 'byte')}"
    return [
        f"{size}; window {window}, stride {stride}",
        f"perplexity      {found.perplexity:.4f}",
        f"bits per token  {found.bits_per_token:.4f}",
        f"bits per byte   {found.bits_per_byte:.4f}",
    ]
