"""One program under torchrun on all hosts: its processes, their outputs, their ends."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from netns_cluster.hosts import INTERFACE, Host

PORT = "29400"
PATIENCE = 300.0
POLL_SECONDS = 0.02


class Job:
    """`words` are what torchrun starts, such as -m gyrfalcon generate …; with `restarts` torchrun starts all
    ranks anew when one has ended.
    """

    def __init__(
        self, hosts: Sequence[Host], ranks: int, words: Sequence[str], folder: Path, restarts: int
    ) -> None:
        self.hosts, self.folder = hosts, folder
        self.agents: list[subprocess.Popen[str]] = []
        for host in hosts:
            with (
                open(folder / f"out{host.index}", "w") as out,
                open(folder / f"err{host.index}", "w") as err,
            ):
                command = host.command(self._torchrun(host, ranks, restarts, words))
                self.agents.append(
                    subprocess.Popen(
                        command, stdout=out, stderr=err, text=True, env=_environment(), cwd=folder
                    )
                )

    def _torchrun(self, host: Host, ranks: int, restarts: int, words: Sequence[str]) -> list[str]:
        first, nodes = self.hosts[0].address, str(len(self.hosts))
        where = ["--nnodes", nodes, "--nproc-per-node", str(ranks)]
        if restarts:
            where += ["--max-restarts", str(restarts), "--rdzv-backend", "c10d", "--rdzv-id", "1"]
            where += ["--rdzv-endpoint", f"{first}:{PORT}", "--local-addr", host.address]
            where += ["--rdzv-conf", f"is_host={str(host.index == 0).lower()}"]
        else:
            where += ["--node-rank", str(host.index), "--master-addr", first, "--master-port", PORT]
        return [sys.executable, "-m", "torch.distributed.run", *where, *words]

    def out(self, host: int = 0) -> str:
        """What a host's ranks have printed."""
        return (self.folder / f"out{host}").read_text()

    def err(self, host: int = 0) -> str:
        """The same of errors, with torchrun's own words."""
        return (self.folder / f"err{host}").read_text()

    def error_lines(self, host: int = 0) -> list[str]:
        """gyrfalcon's error lines of a host."""
        return [
            line for line in self.err(host).splitlines() if line.startswith("gyrfalcon: error:")
        ]

    def ranks(self) -> dict[int, psutil.Process]:
        """The rank processes that live, by rank."""
        found: dict[int, psutil.Process] = {}
        for agent in self.agents:
            with contextlib.suppress(psutil.Error):
                for process in psutil.Process(agent.pid).children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        environment = process.environ()
                        if "RANK" in environment and process.status() != psutil.STATUS_ZOMBIE:
                            found.setdefault(int(environment["RANK"]), process)
        return found

    def until(self, words: str, host: int = 0, times: int = 1) -> None:
        """Waits until a host's errors have some words so often; RuntimeError when they do not come."""
        deadline = time.monotonic() + PATIENCE
        while self.err(host).count(words) < times:
            if time.monotonic() > deadline or self.agents[host].poll() is not None:
                raise RuntimeError(f"wanted {words!r}, got {self.err(host)[-2000:]}")
            time.sleep(POLL_SECONDS)

    def wait(self) -> list[int]:
        """The agents' exit codes, of each host."""
        return [agent.wait(PATIENCE) for agent in self.agents]

    def seconds_until_ended(self, processes: Sequence[psutil.Process]) -> float:
        """How long the processes take to end from now on; endless where one does not."""
        begin = time.monotonic()
        _, alive = psutil.wait_procs(processes, timeout=60)
        return float("inf") if alive else time.monotonic() - begin

    def close(self) -> None:
        """Ends what is left."""
        for process in self.ranks().values():
            with contextlib.suppress(psutil.Error):
                process.kill()
        for agent in self.agents:
            agent.kill()
            agent.wait()


def _environment() -> dict[str, str]:
    own = {"GLOO_SOCKET_IFNAME": INTERFACE, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **own}


@contextlib.contextmanager
def job(
    hosts: Sequence[Host], ranks: int, words: Sequence[str], restarts: int = 0
) -> Iterator[Job]:
    """A job that is gone at the end."""
    with tempfile.TemporaryDirectory(prefix="netns-cluster-") as folder:
        one = Job(hosts, ranks, words, Path(folder), restarts)
        try:
            yield one
        finally:
            one.close()
