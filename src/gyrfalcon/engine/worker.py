"""What a started rank does all its life: build its replica, then follow rank 0's messages."""

import pickle
from pathlib import Path

from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.device import keep_to, own_processors
from gyrfalcon.engine.build import build_replica
from gyrfalcon.engine.overlap import stepper
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.parallel.launch import Place


def follow(config: EngineConfig, folder: Path, place: Place) -> None:
    """Never returns: the first rank ends its workers, and a broken connection to it raises."""
    checkpoint = open_checkpoint(folder, config.adapter, config.dtype)
    replica = build_replica(config, checkpoint, place, keeps=False)
    if replica.device.type == "cpu":
        keep_to(own_processors(place.local_rank, place.ranks_here))
    take_step = stepper(replica)
    while True:
        message = place.group.broadcast()
        if message:
            replica.obey(pickle.loads(message))
        else:
            take_step()
