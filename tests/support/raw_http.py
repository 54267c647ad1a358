"""Requests byte by byte: what no ordinary client would send."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from simulator.payloads import COHORT_PATH
from tests.support.polling import DEADLINE
from tests.support.service import KEY, Service

JSON = "Content-Type: application/json"
AUTH = f"api_key: {KEY}"


def connect(service: Service, timeout: float = DEADLINE) -> socket.socket:
    """A connection to the service."""
    address = urlsplit(service.url)
    return socket.create_connection((address.hostname, address.port), timeout=timeout)


def raw(service: Service, data: bytes) -> bytes:
    """Send bytes as they are; return all that comes back until the connection is closed."""
    with connect(service) as sock:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has answered, and hung up, before it had all
        parts = []
        try:
            while part := sock.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
    return b"".join(parts)


def head(*lines: str, path: str = COHORT_PATH, method: str = "POST") -> bytes:
    """The head of a request, with these header lines."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


def status(reply: bytes) -> int:
    """The status of the first reply; 0 where there is none."""
    return int(reply.split(b" ", 2)[1]) if reply.startswith(b"HTTP/1.") else 0
