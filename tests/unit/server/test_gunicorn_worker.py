"""The head of a reply is sent with the start of its body, and waits for nothing else."""

from __future__ import annotations

import inspect
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from gunicorn.config import Config
from gunicorn.http.wsgi import Response
from gunicorn.workers.ggevent import GeventWorker

from app.server.gunicorn_worker import BufferedHead


@pytest.fixture
def ends() -> Iterator[tuple[BufferedHead, socket.socket]]:
    # Datagrams, so that each call of send can be counted.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    theirs.setblocking(False)
    with ours, theirs:
        yield BufferedHead(ours), theirs


def received(end: socket.socket) -> list[bytes]:
    pieces = []
    while True:
        try:
            pieces.append(end.recv(1000))
        except BlockingIOError:
            return pieces


def test_head__followed_by_a_body__is_sent_with_its_begin(
    ends: tuple[BufferedHead, socket.socket],
) -> None:
    held, other = ends
    held.sendall(b"head ")
    assert received(other) == []
    held.sendall(b"first")
    assert received(other) == [b"head first"]
    held.sendall(b"second")
    held.flush()
    assert received(other) == [b"second"]


def test_head__without_a_body__is_sent_once_when_flushed(
    ends: tuple[BufferedHead, socket.socket],
) -> None:
    held, other = ends
    held.sendall(b"head")
    held.flush()
    held.flush()
    assert received(other) == [b"head"]


def test_head__before_anything_else_is_done_with_the_connection__is_sent(
    ends: tuple[BufferedHead, socket.socket],
) -> None:
    held, other = ends
    held.sendall(b"head")
    held.send(b"file")
    assert received(other) == [b"head", b"file"]


def test_gunicorn__sends_head_and_body_of_a_reply_with_sendall_of_response_sock(
    ends: tuple[BufferedHead, socket.socket],
) -> None:
    held, other = ends
    request = SimpleNamespace(version=(1, 1), method="POST", should_close=lambda: False)
    response = Response(request, held, Config())
    response.start_response("200 OK", [("Content-Length", "4")])
    response.write(b"body")
    response.close()
    assert response.sock is held  # post_request flushes it
    (sent,) = received(other)
    assert sent.startswith(b"HTTP/1.1 200 OK\r\n")
    assert sent.endswith(b"\r\n\r\nbody")


def test_gunicorn__passes_the_connection_to_handle_request() -> None:
    parameters = inspect.signature(GeventWorker.handle_request).parameters
    assert list(parameters) == ["self", "listener_name", "req", "sock", "addr"]
