"""The gunicorn worker of the service: gevent's, which sends a short reply in one piece."""

from __future__ import annotations

from typing import Any

from gunicorn.workers.ggevent import GeventWorker


class HeadHeld:
    """A connection whose first piece waits for the second: a reply's head for its body's begin.

    gunicorn sends the two apart. For a reply of a hundred bytes, sending is a good part of the
    work, and it wakes up the client twice.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._head: bytes | None = None
        self._is_first = True

    def sendall(self, data: bytes) -> None:
        if self._is_first:
            self._head, self._is_first = data, False
        elif self._head is not None:
            data, self._head = self._head + data, None
            # Nearly always all of it; `sendall` first asks how large the system's buffer is.
            sent = self._connection.send(data)
            if sent < len(data):
                self._connection.sendall(memoryview(data)[sent:])
        else:
            self._connection.sendall(data)

    def flush(self) -> None:
        """Send a head that no body has followed."""
        if self._head is not None:
            head, self._head = self._head, None
            self._connection.sendall(head)

    def __getattr__(self, name: str) -> Any:
        # Whatever else is done with the connection comes after the head.
        self.flush()
        return getattr(self._connection, name)


class Worker(GeventWorker):  # type: ignore[misc]  # without types
    """What gunicorn.conf.py names; its ``post_request`` flushes the reply's connection."""

    def init_process(self) -> None:
        # gunicorn looks each setting up in two steps of Python, some thirty times a request.
        settings = self.cfg.settings
        self.cfg.__dict__.update({name: setting.get() for name, setting in settings.items()})
        super().init_process()

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        super().handle_request(listener_name, req, HeadHeld(sock), addr)
