"""What a started rank does all its life: build its core, then follow rank 0's messages."""

from pathlib import Path

from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.device.threads import keep_to, own_processors
from gyrfalcon.engine.build import build_core
from gyrfalcon.engine.overlap import stepper
from gyrfalcon.engine.rank_messages import Step, decode
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.parallel.launch import RankInfo


def follow(config: EngineConfig, folder: Path, rank_info: RankInfo) -> None:
    """Never returns: the first rank ends its workers, and a broken connection to it raises."""
    checkpoint = open_checkpoint(folder, config.adapter, config.dtype)
    core = build_core(config, checkpoint, rank_info, retain_prompt_logits=False)
    if core.device.on_host:
        keep_to(own_processors(rank_info.local_rank, rank_info.ranks_here))
    take_step = stepper(core)
    while True:
        message = decode(rank_info.group.broadcast())
        if isinstance(message, Step):
            for end in message.ends:
                core.handle(end)
            take_step(message.prompt_tokens)
        else:
            core.handle(message)
