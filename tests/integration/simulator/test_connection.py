"""A connection of the simulator: credentials, and every way in which a call can end."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from simulator import payloads
from simulator.connection import (
    CLOSED,
    CUT,
    REFUSED,
    TIMEOUT,
    Auth,
    Connection,
    InvalidTarget,
    Target,
)
from tests.integration.simulator.receiver import APP, CLOSED_PORT, KEY, Receiver


@pytest.mark.parametrize("auth", ["basic", "headers", "bearer"])
def test_post__every_kind_of_credentials__is_accepted(auth: Auth) -> None:
    with Receiver() as receiver:
        connection = Connection(Target(receiver.url, KEY, APP, auth))
        body = json.dumps(payloads.identify("a", "n:1", True)).encode()
        assert connection.post(payloads.COHORT_PATH, body).status == 200
        connection.close()
        assert receiver.traits(["a"]) == [{"n:1": True}]


def test_headers__extra__are_sent_too() -> None:
    target = Target("http://h", "k", extra_headers={"X-A": "b"})
    assert target.headers()["X-A"] == "b"
    assert target.headers()["Authorization"] == "Basic azo="
    assert "Authorization" not in Target("http://h", "k", auth="none").headers()


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://h", "http://", "http://h:x", "http://h?a"]
)
def test_connection__unusable_address__says_so(url: str) -> None:
    with pytest.raises(InvalidTarget):
        Connection(Target(url))


@pytest.mark.parametrize(
    "target",
    [
        Target("http://h", "ключ", auth="headers"),
        Target("http://h", "ключ", auth="bearer"),
        Target("http://h", "a\nb", auth="headers"),
        Target("http://h", "\udcff"),
        Target("http://h", extra_headers={"X": "é日"}),
        Target("http://h", extra_headers={"X é": "a"}),
    ],
)
def test_connection__headers_that_cannot_be_sent__says_so(target: Target) -> None:
    with pytest.raises(InvalidTarget, match="can't be sent"):
        Connection(target)


def test_connection__prefix_with_a_space_and_umlauts__is_percent_encoded() -> None:
    with Receiver() as receiver:
        connection = Connection(Target(f"{receiver.url}/a b/ä%20", KEY))
        assert connection.post("/lists", b"{}").status == 404
        connection.close()
        assert receiver.bodies == [("/a%20b/%C3%A4%20/lists", b"{}")]


def test_post__nothing_listens__was_not_sent() -> None:
    reply = Connection(Target(f"http://127.0.0.1:{CLOSED_PORT}")).post("/", b"{}")
    assert (reply.status, reply.error, reply.ok) == (None, REFUSED, False)
    assert "refused" in reply.detail


def test_post__server_closes_without_a_reply__may_have_been_applied() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                while b"{}" not in connection.recv(65536):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        reply = Connection(Target(f"http://127.0.0.1:{server.getsockname()[1]}")).post("/", b"{}")
        thread.join()
    assert reply.error == CLOSED


def test_post__no_reply_in_time__may_have_been_applied() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = Target(f"http://127.0.0.1:{server.getsockname()[1]}", timeout=0.1)
        assert Connection(target).post("/", b"{}").error == TIMEOUT


@pytest.mark.parametrize("at", [0, len(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n")])
def test_post__reply_trickles__times_out(at: int) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n" + b"x" * 40
    with socket.create_server(("127.0.0.1", 0)) as server:
        given_up = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                while b"{}" not in connection.recv(65536):
                    pass
                connection.sendall(answer[:at])
                for byte in answer[at:]:
                    if given_up.wait(0.05):
                        return
                    connection.sendall(bytes([byte]))

        thread = threading.Thread(target=drip)
        thread.start()
        target = Target(f"http://127.0.0.1:{server.getsockname()[1]}", timeout=0.3)
        reply = Connection(target).post("/", b"{}")
        given_up.set()
        thread.join()
    assert reply.error == TIMEOUT
    assert 0.3 < reply.seconds < 1.5


def test_post__keep_alive_ended_by_the_server__opens_a_new_connection() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = threading.Event()

        def serve() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    while b"{}" not in connection.recv(65536):
                        pass
                    connection.sendall(answer)
                closed.set()

        thread = threading.Thread(target=serve)
        thread.start()
        connection = Connection(Target(f"http://127.0.0.1:{server.getsockname()[1]}"))
        assert connection.post("/", b"{}").status == 200
        assert closed.wait(5)
        assert connection.post("/", b"{}").status == 200
        connection.close()
        thread.join()


def test_post_truncated__batch__is_never_applied_and_the_connection_works_on() -> None:
    with Receiver() as receiver:
        connection = Connection(Target(receiver.url, KEY))
        body = json.dumps(payloads.batch(payloads.user_ids(100), "n:1", True)).encode()
        assert connection.post_truncated(payloads.COHORT_PATH, body).error == CUT
        assert connection.post_slowly(payloads.COHORT_PATH, body, 0.1).status == 200
        connection.close()
        assert len(receiver.users) == 100
        assert receiver.statuses[200] == 1
