"""Hosts on one machine: network namespaces with an interface each, joined by a bridge in one more. They share
processes, files and a hostname, and nothing of the network.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

INTERFACE = "e0"
SUBNET = "10.77.0"
BURST, QUEUE = "4kb", "4mb"  # what may leave at once above the rate, and what may wait


class NotHere(Exception):
    """Namespaces cannot be made here; the message says why."""


@dataclass(frozen=True, slots=True)
class Host:
    """One of them."""

    index: int
    namespace: str

    @property
    def address(self) -> str:
        """By which the others reach it."""
        return f"{SUBNET}.{self.index + 1}"

    def command(self, words: Sequence[str]) -> list[str]:
        """A command that runs there."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def sent_bytes(self) -> int:
        """What has left its interface, as `ip -s link` counts it."""
        path = f"/sys/class/net/{INTERFACE}/statistics/tx_bytes"
        return int(_output(*self.command(["cat", path])))

    def set_link(self, state: str) -> None:
        """Takes its link up or down."""
        _run("ip", "-n", self.namespace, "link", "set", INTERFACE, state)

    def shape(self, rate: str | None) -> None:
        """Limits what leaves it, such as to 20mbit; None: no more."""
        with contextlib.suppress(NotHere):
            _run("tc", "-n", self.namespace, "qdisc", "del", "dev", INTERFACE, "root")
        if rate is not None:
            to = ("dev", INTERFACE, "root", "tbf", "rate", rate, "burst", BURST, "limit", QUEUE)
            _run("tc", "-n", self.namespace, "qdisc", "add", *to)


@contextlib.contextmanager
def hosts(number: int) -> Iterator[list[Host]]:
    """So many, gone at the end with all processes in them. NotHere where that cannot be."""
    if os.geteuid() != 0:
        raise NotHere("network namespaces need root")
    if shutil.which("ip") is None or shutil.which("tc") is None:
        raise NotHere("no ip and tc (iproute2)")
    switch = f"gyr{os.getpid()}s"
    made = [Host(index, f"gyr{os.getpid()}h{index}") for index in range(number)]
    try:
        _make_switch(switch)
        for host in made:
            _plug_in(host, switch)
        yield made
    finally:
        for name in (*(host.namespace for host in made), switch):
            _remove(name)


def _make_switch(name: str) -> None:
    _run("ip", "netns", "add", name)
    _run("ip", "-n", name, "link", "add", "name", "br0", "type", "bridge")
    _run("ip", "-n", name, "link", "set", "br0", "up")


def _plug_in(host: Host, switch: str) -> None:
    port, end = f"p{host.index}", ("ip", "-n", host.namespace)
    _run("ip", "netns", "add", host.namespace)
    peer = ("type", "veth", "peer", "name", port, "netns", switch)
    _run(*end, "link", "add", "name", INTERFACE, *peer)
    _run("ip", "-n", switch, "link", "set", port, "master", "br0", "up")
    _run(*end, "addr", "add", f"{host.address}/24", "dev", INTERFACE)
    for name in ("lo", INTERFACE):
        _run(*end, "link", "set", name, "up")


def _remove(name: str) -> None:
    with contextlib.suppress(NotHere):
        for process in _output("ip", "netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), 9)
        _run("ip", "netns", "del", name)


def _run(*words: str) -> None:
    _output(*words)


def _output(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotHere(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
