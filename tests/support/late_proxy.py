"""A proxy in front of a store that can hold back what clients send, and deliver it later."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class LateProxy:
    """Forwards the bytes of each connection; see :func:`late_proxy`."""

    def __init__(self, backend: str, listener: socket.socket) -> None:
        self._backend = backend
        self._listener = listener
        self._held: list[_Held] = []
        self._threads: list[threading.Thread] = []
        self._spawn(self._accept)

    def hold_back(self) -> None:
        """From now on, keep what clients send on connections that are open now."""
        for held in self._held:
            held.holding = True

    def deliver(self) -> None:
        """Send the server what was kept, whether its sender has gone or not, and await its replies.

        Raises:
            AssertionError: nothing was kept.
        """
        assert any(held.kept for held in self._held), "nothing was held back"
        for held in self._held:
            held.deliver()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for held in self._held:
            held.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._backend)
            held = _Held(client, server)
            self._held.append(held)
            self._spawn(held.forward)
            self._spawn(held.reply)

    def _spawn(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        self._threads.append(thread)


class _Held:
    """One connection."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.holding = False
        self.kept = b""
        self._delivering = threading.Event()

    def forward(self) -> None:
        with suppress(OSError):
            while data := self.client.recv(1 << 16):
                if self.holding:
                    self.kept += data
                else:
                    self.server.sendall(data)
        if not self.holding:
            self.close()

    def reply(self) -> None:
        with suppress(OSError):
            while data := self.server.recv(1 << 16):
                if not self.holding:
                    self.client.sendall(data)
        self._delivering.set()

    def deliver(self) -> None:
        if self.kept:
            self.server.sendall(self.kept)
            self.server.shutdown(socket.SHUT_WR)  # the server replies, and closes
            assert self._delivering.wait(10)

    def close(self) -> None:
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def late_proxy(store_url: str, folder: Path) -> Iterator[tuple[LateProxy, str]]:
    """Run a proxy in front of a store on a socket; yields it and its address."""
    path = folder / "proxy"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        proxy = LateProxy(store_url.removeprefix("unix://"), listener)
        try:
            yield proxy, f"unix://{path}"
        finally:
            proxy.close()
