"""A reply's head waits for its body's begin, and for nothing else."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from app.server.gunicorn_worker import BufferedHead


@pytest.fixture
def ends() -> Iterator[tuple[BufferedHead, socket.socket]]:
    # Datagrams, so that what was sent at once can be told apart.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    theirs.setblocking(False)
    with ours, theirs:
        yield BufferedHead(ours), theirs


def received(end: socket.socket) -> list[bytes]:
    pieces = []
    while True:
        try:
            pieces.append(end.recv(100))
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
