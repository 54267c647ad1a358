"""A TCP proxy that can break connections."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading

from tests.support.polling import wait_until


class Proxy:
    """Forwards bytes both ways, in one thread, until `close`."""

    def __init__(self, backend: tuple[str, int]) -> None:
        self._backend = backend
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._break = threading.Event()
        self._refuse = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def break_all(self) -> None:
        """Reset every open connection, including those with a command in progress."""
        self._break.set()
        wait_until(lambda: not self._break.is_set())

    def refuse(self, refuse: bool) -> None:
        """Start refusing new connections and reset the open ones, or stop refusing."""
        if refuse:
            self._refuse.set()
            self.break_all()
        else:
            self._refuse.clear()

    def switch(self, backend: tuple[str, int]) -> None:
        """Connect new connections to another server; open ones stay where they are."""
        self._backend = backend

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._break.is_set():
                for end in list(self._pairs):
                    self._drop(end)
                self._break.clear()
            for key, _ in self._selector.select(timeout=0.02):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in self._pairs:
                    self._forward(key.fileobj)  # type: ignore[arg-type]
        for end in list(self._pairs):
            self._drop(end)
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            if self._refuse.is_set():
                raise ConnectionRefusedError
            backend = socket.create_connection(self._backend, timeout=1)
        except OSError:
            _reset(client)
            return
        for one, other in ((client, backend), (backend, client)):
            one.settimeout(10)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _forward(self, source: socket.socket) -> None:
        try:
            data = source.recv(1 << 18)
            if data:
                self._pairs[source].sendall(data)
                return
        except OSError:
            pass
        self._drop(source)

    def _drop(self, end: socket.socket) -> None:
        other = self._pairs.pop(end, None)
        if other is None:
            return
        self._pairs.pop(other, None)
        for one in (end, other):
            self._selector.unregister(one)
            _reset(one)


def _reset(end: socket.socket) -> None:
    """Close with a reset, like a broken connection."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    end.close()
