"""What torchrun told this process of its ranks, in environment variables, checked."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from gyrfalcon.errors import UsageError

MARK = "TORCHELASTIC_RUN_ID"  # what torchrun alone sets
DO = f"unset {MARK}, or start with torchrun"


@dataclass(frozen=True, slots=True)
class Torchrun:
    """One process of a torchrun: its rank among all, its number on its machine, where they meet."""

    rank: int
    world_size: int
    local_rank: int
    ranks_here: int
    address: str
    port: int
    has_store: bool  # whether torchrun itself holds the store, not the first rank

    @classmethod
    def found(cls, environment: Mapping[str, str] = os.environ) -> "Torchrun | None":
        """This process's; None when torchrun did not start it. UsageError when only some of its
        variables are there, as in a shell that inherited them, or a wrong one.
        """
        if MARK not in environment:
            return None
        world_size = _whole(environment, "WORLD_SIZE", range(1, 1 << 31))
        ranks_here = _whole(environment, "LOCAL_WORLD_SIZE", range(1, world_size + 1))
        address = environment.get("MASTER_ADDR", "")
        if not address:
            raise UsageError(f"MASTER_ADDR, a host, beside {MARK}", "none", DO)
        return cls(
            rank=_whole(environment, "RANK", range(world_size)),
            world_size=world_size,
            local_rank=_whole(environment, "LOCAL_RANK", range(ranks_here)),
            ranks_here=ranks_here,
            address=address,
            port=_whole(environment, "MASTER_PORT", range(1, 1 << 16)),
            has_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )


def outside_torchrun(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that is no rank of torchrun, though its parent is."""
    return {name: value for name, value in environment.items() if name != MARK}


def _whole(environment: Mapping[str, str], name: str, allowed: range) -> int:
    text = environment.get(name)
    if text is None or not (text.isascii() and text.isdigit() and int(text[:12]) in allowed):
        last = allowed.stop - 1
        wanted = f"{name} from {allowed.start} to {last} beside {MARK}"
        raise UsageError(wanted, "none" if text is None else repr(text[:40]), DO)
    return int(text)
