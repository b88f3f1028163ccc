"""The server under load: where it listens and what its endpoints are called."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from gyrfalcon.bounds import shown
from gyrfalcon.errors import UsageError

COMPLETIONS, CHAT = "completions", "chat"
ENDPOINTS = {COMPLETIONS: "completions", CHAT: "chat/completions"}
DO = "write it as in http://127.0.0.1:8000"
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """An OpenAI-compatible server; `root` is the path that ends in /v1."""

    host: str
    port: int
    tls: bool
    root: str

    @property
    def host_header(self) -> str:
        """As HTTP wants it: with the port unless it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def scheme(self) -> str:
        """http or https."""
        return "https" if self.tls else "http"

    def path(self, name: str) -> str:
        """The path of an endpoint such as models."""
        return f"{self.root}/{name}"

    def url(self, name: str) -> str:
        """An endpoint's whole URL."""
        return f"{self.scheme}://{self.host_header}{self.path(name)}"


def target_of(url: str) -> Target:
    """The server at a URL with or without /v1; UsageError for anything else."""
    wanted = "a URL of http or https without user, query or fragment"
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise UsageError(wanted, f"{shown(url)} ({error})", DO) from None
    extra = parts.username is not None or parts.query or parts.fragment
    is_plain = re.fullmatch(r"[!-~]*", url)  # nothing that could end a line of a header
    if parts.scheme not in PORTS or not host or port == 0 or extra or not is_plain:
        raise UsageError(wanted, shown(url), DO)
    root = parts.path.rstrip("/")
    for name in ENDPOINTS.values():
        root = root.removesuffix(f"/v1/{name}") if root.endswith(f"/v1/{name}") else root
    root = root if root.endswith("/v1") else f"{root}/v1"
    return Target(host, port or PORTS[parts.scheme], parts.scheme == "https", root)
