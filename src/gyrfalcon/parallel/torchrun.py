"""What torchrun told this process of its ranks, in environment variables, checked."""

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from gyrfalcon.errors import UsageError

MARK = "TORCHELASTIC_RUN_ID"  # what torchrun alone sets
DO = f"unset {MARK}, or start with torchrun"
CONNECT_SECONDS = 30.0  # torchrun's store is there before its processes are
MEET_SECONDS = 300.0
PROBE_SECONDS = 5.0
POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Torchrun:
    """One process of a torchrun: its rank among all, its number on its machine, where they meet."""

    rank: int
    world_size: int
    local_rank: int
    ranks_here: int
    address: str
    port: int
    attempt: int  # how often torchrun has started them anew: keys of an earlier attempt are stale
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
            attempt=_whole(environment, "TORCHELASTIC_RESTART_COUNT", range(1 << 31), "0"),
            has_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )

    def store(self, connect: float = CONNECT_SECONDS, meet: float = MEET_SECONDS) -> dist.Store:
        """Where the ranks of this attempt meet, once all are there. UsageError when nothing answers
        within `connect` seconds, or a rank does not come within `meet`.
        """
        hosts = self.rank == 0 and not self.has_store
        if not hosts:
            self._probe(time.monotonic() + connect)
        try:
            patience = timedelta(seconds=connect)
            all_attempts = dist.TCPStore(self.address, self.port, is_master=hosts, timeout=patience)
        except RuntimeError as error:
            got = str(error).splitlines()[0]
            raise UsageError(f"{self._where}", got, DO) from None
        store = dist.PrefixStore(f"gyrfalcon/{self.attempt}", all_attempts)
        store.set(f"here/{self.rank}", "")
        deadline = time.monotonic() + meet
        for rank in range(self.world_size):
            while not store.check([f"here/{rank}"]):
                if time.monotonic() > deadline:
                    wanted = f"all {self.world_size} ranks of torchrun"
                    raise UsageError(wanted, f"no rank {rank} for {meet:g} s", DO)
                time.sleep(POLL_SECONDS)
        return store

    def _probe(self, deadline: float) -> None:
        """Waits for the store in our words: torch retries for minutes and prints pages."""
        while True:
            try:
                socket.create_connection((self.address, self.port), timeout=PROBE_SECONDS).close()
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise UsageError(self._where, error.strerror or str(error), DO) from None
            time.sleep(POLL_SECONDS)

    @property
    def _where(self) -> str:
        return f"torchrun's store at {self.address}:{self.port} (MASTER_ADDR, MASTER_PORT)"


def _whole(
    environment: Mapping[str, str], name: str, allowed: range, default: str | None = None
) -> int:
    text = environment.get(name, default)
    if text is None or not (text.isascii() and text.isdigit() and int(text[:12]) in allowed):
        last = allowed.stop - 1
        wanted = f"{name} from {allowed.start} to {last} beside {MARK}"
        raise UsageError(wanted, "none" if text is None else repr(text[:40]), DO)
    return int(text)
