"""What the ranks do that rank 0 leads: build their cores, then follow its messages."""

import itertools
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gyrfalcon.checkpoint.hub import resolve_model
from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.device.lookup import kind_for
from gyrfalcon.device.threads import home_processors, keep_to, own_processors
from gyrfalcon.engine.build import build_core
from gyrfalcon.engine.core import EngineCore
from gyrfalcon.engine.heap import freeze_heap
from gyrfalcon.engine.overlap import stepper
from gyrfalcon.engine.rank_messages import Step, Stop, decode, decode_engine
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.parallel.group import Group
from gyrfalcon.parallel.meeting import leave
from gyrfalcon.parallel.ranks import RankInfo
from gyrfalcon.parallel.torchrun_ranks import Meeting, following, next_engine


def follow(config: EngineConfig, folder: Path, rank_info: RankInfo) -> None:
    """All the life of a rank that was started: the first rank ends it or tells it to end, and a broken
    connection to that raises.
    """
    core = _built(config, folder, rank_info)
    rank = rank_info.local_rank, rank_info.ranks_here
    own = own_processors(*rank) if core.device.on_host else []
    keep_to(own or home_processors(core.device, *rank))
    _follow_messages(core, rank_info.group)
    rank_info.group.close()


def follow_command(meeting: Meeting) -> None:
    """What a rank of torchrun does while rank 0 runs a command: joins each engine that it announces,
    follows it until it is closed, and ends when there are no more.
    """
    for number in itertools.count():
        announced = next_engine(meeting, number)
        config = None if announced is None else decode_engine(announced[0])
        if announced is None or config is None:
            break
        kind = kind_for(config.device)
        joining = following(meeting, announced[1], kind, config.rank_timeout)
        with _held_termination() as asked_to_end, joining as rank_info:
            core = _built(config, resolve_model(config.model), rank_info)
            _follow_messages(core, rank_info.group)
        if asked_to_end:
            break
    meeting.heartbeats.stop()
    with suppress(RuntimeError):  # the store may be gone
        leave(meeting.store, meeting.torchrun.rank)


@contextmanager
def _held_termination() -> Iterator[list[int]]:
    """Has SIGTERM, which torchrun sends to all its processes, end this one when rank 0 has closed the
    engine: a server lets answers finish first. The list has the signals that came.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield came
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)


def _built(config: EngineConfig, folder: Path, rank_info: RankInfo) -> EngineCore:
    checkpoint = open_checkpoint(folder, config.adapter, config.dtype)
    return build_core(config, checkpoint, rank_info, retain_prompt_logits=False)


def _follow_messages(core: EngineCore, group: Group) -> None:
    """Until rank 0 says so, or the connection to it breaks, which raises RankGone."""
    freeze_heap()
    take_step = stepper(core)
    heartbeat = group.heartbeat
    while True:
        heartbeat.doing = "waiting for rank 0"
        message = decode(group.broadcast())
        if isinstance(message, Step):
            heartbeat.begin_step()
            for end in message.ends:
                core.handle(end)
            take_step(message.prompt_tokens, message.least_acceptance)
        elif isinstance(message, Stop):
            core.device.synchronise()
            return
        else:
            heartbeat.counter.value += 1
            core.handle(message)
