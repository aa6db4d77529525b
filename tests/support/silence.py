"""A proxy to Redis that stops answering but keeps connections, as a dead firewall or NAT does."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

READ_BYTES = 1 << 16


class SilentProxy:
    """Pass bytes between `path` and the unix socket `target`.

    A connection that a silence has hit stays silent.
    """

    def __init__(self, path: Path, target: Path) -> None:
        self.path, self._target = path, target
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(128)
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._deaf: set[socket.socket] = set()
        self._is_silent = False
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):  # its peer was first
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._sockets):
            end.close()

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Stop these connections forever; new ones are accepted, and get no byte."""
        with self._lock:
            self._is_silent = True
            self._deaf.update(self._sockets)
        yield
        with self._lock:
            self._is_silent = False

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self._target))
            with self._lock:
                self._sockets += [client, server]
                if self._is_silent:
                    self._deaf |= {client, server}
            for source, sink in ((client, server), (server, client)):
                thread = threading.Thread(target=self._pump, args=(source, sink))
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(READ_BYTES):
                if source not in self._deaf:
                    sink.sendall(data)
            if source not in self._deaf:
                sink.shutdown(socket.SHUT_WR)
