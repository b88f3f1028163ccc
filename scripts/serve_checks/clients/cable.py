"""A cable between a browser and a server that can be cut: forwards bytes of loopback connections."""

import contextlib
import socket
import threading

HERE = "127.0.0.1"


class Cable:
    """Ends at a port of its own; what is connected there reaches a server's port."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._open: list[socket.socket] = []
        self._listening = self._listen(0)
        self.port: int = self._listening.getsockname()[1]

    def cut(self) -> None:
        """Ends all connections; nobody answers from here on."""
        for one in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def mend(self) -> None:
        """Takes connections at the same port again."""
        self._listening = self._listen(self.port)

    def _listen(self, port: int) -> socket.socket:
        listening = socket.create_server((HERE, port))
        threading.Thread(target=self._take, args=(listening,), daemon=True).start()
        return listening

    def _take(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):  # cut
            while True:
                client, _ = listening.accept()
                server = socket.create_connection((HERE, self._server_port))
                self._open += (client, server)
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=_forward, args=pair, daemon=True).start()


def _forward(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(65536):
            target.sendall(part)
        target.shutdown(socket.SHUT_WR)
