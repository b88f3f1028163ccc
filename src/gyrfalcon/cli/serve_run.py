"""What `gyrfalcon serve` does: checks the model and the address, then serves until it is ended."""

import argparse
import os
import sys
import time
from dataclasses import replace

from gyrfalcon.checkpoint.hub import resolve_model
from gyrfalcon.cli.before_loading import opened
from gyrfalcon.cli.engine_options import engine_config
from gyrfalcon.console.format import say_ready
from gyrfalcon.device.lookup import kind_for
from gyrfalcon.engine.engine import Engine
from gyrfalcon.engine.heap import freeze_heap
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.errors import UsageError
from gyrfalcon.serve.access import is_loopback
from gyrfalcon.serve.keys import API_KEY, checked_keys, keys_of_file
from gyrfalcon.serve.log import log_to_stderr
from gyrfalcon.serve.server import Listening, listen
from gyrfalcon.serve.server import run as run_server
from gyrfalcon.serve.service import Settings, served_names

# Tokens of a step: on a CPU more read prompts no faster, and let streams wait.
HOST_BATCH_TOKENS, BATCH_TOKENS = 192, 512


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM (0) or Ctrl-C; raises what ended the engine."""
    listening = Listening(
        host=args.host,
        port=args.port,
        keys=_keys(args),
        allowed_hosts=tuple(args.allowed_hosts or ()),
        allowed_origins=tuple(args.allowed_origins or ()),
        shutdown_seconds=args.shutdown_timeout,
    )
    if not listening.keys and not is_loopback(args.host):
        do = f"set {API_KEY}, or give --api-key-file"
        raise UsageError(f"an API key to listen on {args.host}", "none", do)
    settings = Settings(
        names=tuple(args.served_model_names or served_names(args.model)),
        ignore_unknown=args.unknown_options == "ignore",
        max_queued_requests=args.max_queued_requests,
        max_queued_tokens=args.max_queued_tokens,
        public_metrics=args.public_metrics,
    )
    args.model = str(resolve_model(args.model))  # a hub is asked once
    config = served_config(args)
    opened(config)
    bound, begin = listen(args.host, args.port), time.perf_counter()
    log_to_stderr()

    def ready(engine: Engine) -> None:
        freeze_heap()
        say_ready(f"{engine.description}, {time.perf_counter() - begin:.1f} s", engine.notes)
        where = f"[{args.host}]" if ":" in args.host else args.host
        names = " and ".join(settings.names)
        print(f"serving {names} at http://{where}:{bound.getsockname()[1]}/v1", file=sys.stderr)

    run_server(lambda: Engine(config), settings, listening, bound, ready)
    return 0


def served_config(args: argparse.Namespace) -> EngineConfig:
    """The settings of the engine that is served. UsageError for a device that this machine lacks."""
    target = None if args.step_target is None else args.step_target / 1000
    on_host = kind_for(args.device).on_host
    return replace(
        engine_config(args),
        max_sequences=args.max_sequences,
        max_batch_tokens=args.max_batch_tokens or (HOST_BATCH_TOKENS if on_host else BATCH_TOKENS),
        step_target=target,
        num_speculative_tokens=args.num_speculative_tokens,
    )


def _keys(args: argparse.Namespace) -> tuple[str, ...]:
    """The keys of all places they may come from."""
    keys = [os.environ.get(API_KEY, "")]
    if args.api_key is not None:
        if not args.api_key.strip():
            raise UsageError("a key for `api_key`", "an empty one", f"set {API_KEY} instead")
        print(
            f"gyrfalcon: warning: other users see --api-key in the list of processes; {API_KEY} and "
            "--api-key-file keep it secret",
            file=sys.stderr,
        )
        keys.append(args.api_key)
    if args.api_key_file is not None:
        keys += keys_of_file(args.api_key_file)
    return checked_keys(keys)
