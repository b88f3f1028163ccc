"""An HTTP client for one server: connections that are kept for the next request, addresses looked up once,
no redirects, no proxies. A key never leaves its header.
"""

import asyncio
import socket
import ssl
from ipaddress import ip_address

from gyrfalcon import __version__
from gyrfalcon.errors import UsageError
from gyrfalcon.load.connection import Connection, Reader, StaleConnection
from gyrfalcon.load.failures import TIMEOUT, Failure, connect_failure
from gyrfalcon.load.target import Target


class Client:
    """Sends requests to one server, any number at a time; used within one event loop."""

    def __init__(self, target: Target, api_key: str | None, timeout: float) -> None:
        """timeout: seconds from sending a request to the end of its answer."""
        self._target, self._timeout = target, timeout
        key = "" if api_key is None else f"Authorization: Bearer {api_key}\r\n"
        self._headers = (
            f"Host: {target.host_header}\r\nUser-Agent: gyrfalcon-load/{__version__}\r\n"
            f"Accept-Encoding: identity\r\n{key}"
        )
        self._tls = ssl.create_default_context() if target.tls else None
        self._addresses = list[str]()  # the one that answered last comes first
        self._kept = list[Connection]()
        self._all = set[Connection]()

    async def look_up(self) -> None:
        """Finds the server's addresses; UsageError for an unknown host."""
        loop, target = asyncio.get_running_loop(), self._target
        if _is_address(target.host):
            self._addresses = [target.host]
            return
        try:
            found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except OSError as error:
            got = f"{target.host} ({error.strerror or error})"
            raise UsageError("a host that is known", got, "correct the URL") from None
        self._addresses = list(dict.fromkeys(str(address[4][0]) for address in found))

    async def get(self, name: str, reader: Reader) -> None:
        """Asks for an endpoint such as models; the reader gets the answer. Raises Failure."""
        await self._send(f"GET {self._target.path(name)} HTTP/1.1\r\n", b"", reader)

    async def post(self, name: str, body: bytes, reader: Reader) -> None:
        """Sends JSON to an endpoint; the reader gets the answer. Raises Failure."""
        line = f"POST {self._target.path(name)} HTTP/1.1\r\nContent-Type: application/json\r\n"
        await self._send(f"{line}Content-Length: {len(body)}\r\n", body, reader)

    def close(self) -> None:
        """Closes all connections."""
        for connection in self._all:
            connection.abort()
        self._all.clear()
        self._kept.clear()

    async def _send(self, line: str, body: bytes, reader: Reader) -> None:
        request = f"{line}{self._headers}\r\n".encode("latin-1") + body
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    connection = self._kept_one() or await self._connected()
                    try:
                        return await self._exchange(connection, request, reader)
                    except StaleConnection:
                        continue  # the server closed it while it was not in use
        except TimeoutError:
            raise Failure(TIMEOUT, f"no whole answer within {self._timeout:g} s") from None

    async def _exchange(self, connection: Connection, request: bytes, reader: Reader) -> None:
        try:
            await connection.exchange(request, reader)
        finally:
            if connection.is_open:
                self._kept.append(connection)
            else:
                self._all.discard(connection)

    def _kept_one(self) -> Connection | None:
        while self._kept:
            connection = self._kept.pop()
            if connection.is_open:
                return connection
            self._all.discard(connection)
        return None

    async def _connected(self) -> Connection:
        """A new connection, by the first address that takes one."""
        for address in (*self._addresses,):
            try:
                return await self._connect(address)
            except OSError as error:
                last = error
        raise connect_failure(last)

    async def _connect(self, address: str) -> Connection:
        host = self._target.host if self._tls else None
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, address, self._target.port, ssl=self._tls, server_hostname=host
        )
        if self._addresses[0] != address:
            self._addresses.remove(address)
            self._addresses.insert(0, address)
        self._all.add(connection)
        return connection


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
