"""What else happens during a load: slow clients, followers, another app, memory being sampled.

Each is a context manager around the load that gives a function; the function is called with the
load's result, while it still happens, and returns further figures.
"""

from __future__ import annotations

import http.client
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import chain, count
from multiprocessing.connection import Connection

from bench import generator
from bench.generator import LoadFailed, Result
from bench.requests import ADMIN_KEY, COHORT_ID, NOISY_KEY, Target, batches, request
from bench.servers import START_SECONDS, Gunicorn, running_process
from simulator import payloads

Figures = dict[str, float]
Finish = Callable[[Result], Figures]
Requests = Callable[[Target], Iterator[bytes]]
Beside = Callable[[Target, Gunicorn], AbstractContextManager[Finish]]

_SETTLE_SECONDS = 1.0
_MAX_LAG_SECONDS = 30.0
_SAMPLE_SECONDS = 0.02
_EVENT = b"\nevent: change\n"
# Users of other apps and other loads, apart from those of the measured one.
_ELSEWHERE = 1 << 40


@contextmanager
def nothing(target: Target, service: Gunicorn) -> Iterator[Finish]:
    """No company."""
    yield lambda result: {}


@contextmanager
def stalled_senders(number: int, target: Target, service: Gunicorn) -> Iterator[Finish]:
    """Clients that send a request except for its last bytes."""
    part = next(batches(1, target, first=_ELSEWHERE))[:-20]
    with _connections(number, target, part):
        yield lambda result: {}


@contextmanager
def idle_readers(number: int, target: Target, service: Gunicorn) -> Iterator[Finish]:
    """Clients that request a whole cohort and read nothing of the reply."""
    whole = request("GET", f"/api/v1/cohorts/{COHORT_ID}/members.ndjson", key=ADMIN_KEY)
    with _connections(number, target, whole):
        yield lambda result: {}


@contextmanager
def _connections(number: int, target: Target, sent: bytes) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(number):
            client = stack.enter_context(socket.create_connection(target.address, 10))
            client.sendall(sent)
        time.sleep(_SETTLE_SECONDS)
        yield


@contextmanager
def flood(
    requests: Requests,
    clients: int,
    target: Target,
    service: Gunicorn,
    *,
    rate: float | None = None,
) -> Iterator[Finish]:
    """Another process that sends ``requests``, and again when they end.

    Args:
        rate: requests per second; by default without a pause.
    """
    with running_process(_flood, requests, clients, rate, target) as connection:
        if not connection.poll(START_SECONDS) or connection.recv() != "running":
            raise LoadFailed("the flood did not start")
        time.sleep(_SETTLE_SECONDS)

        def finish(result: Result) -> Figures:
            connection.send("stop")
            return {"flood_per_second": connection.recv()}

        yield finish


def _flood(
    requests: Requests,
    clients: int,
    rate: float | None,
    target: Target,
    connection: Connection,
) -> None:
    sent = 0

    def running() -> bool:
        nonlocal sent
        sent += 1
        if sent == 2 * clients:
            connection.send("running")
        return not connection.poll()

    endless = chain.from_iterable(requests(target) for _ in count())
    result = generator.run(
        target.address, endless, clients=clients, seconds=600, rate=rate, running=running
    )
    connection.send(result.answered / result.seconds)


@contextmanager
def followers(number: int, target: Target, service: Gunicorn) -> Iterator[Finish]:
    """Another process that follows the change feed over ``number`` connections.

    Every follower must receive one change per request of the load.
    """
    with running_process(_follow, number, target) as connection:
        if not connection.poll(START_SECONDS) or connection.recv() != "running":
            raise LoadFailed("the followers did not start")

        def finish(result: Result) -> Figures:
            began = time.perf_counter()
            while True:
                connection.send("received")
                received: list[int] = connection.recv()
                lag = time.perf_counter() - began
                if min(received) >= result.answered:
                    return {"lag_ms": lag * 1000}
                if lag > _MAX_LAG_SECONDS:
                    raise LoadFailed(f"{result.answered} changes, but followers got {received}")
                time.sleep(0.01)

        yield finish


def _follow(number: int, target: Target, connection: Connection) -> None:
    poll = select.epoll()
    poll.register(connection, select.EPOLLIN)
    sockets: dict[int, socket.socket] = {}
    for _ in range(number):
        sock = socket.create_connection(target.address, 10)
        sock.sendall(request("GET", "/api/v1/changes/stream?cursor=latest", key=ADMIN_KEY))
        if not sock.recv(65536).startswith(b"HTTP/1.1 200"):
            raise LoadFailed("a follower was refused")
        sock.setblocking(False)
        sockets[sock.fileno()] = sock
        poll.register(sock, select.EPOLLIN)
    received, tails = dict.fromkeys(sockets, 0), dict.fromkeys(sockets, b"")
    connection.send("running")
    while True:
        for fileno, _ in poll.poll():
            if fileno == connection.fileno():
                try:
                    connection.recv()
                except EOFError:
                    return
                connection.send([*received.values()])
            elif part := sockets[fileno].recv(1 << 20):
                received[fileno] += (tails[fileno] + part).count(_EVENT)
                tails[fileno] = part[1 - len(_EVENT) :]
            else:
                poll.unregister(fileno)


@contextmanager
def renaming(target: Target, service: Gunicorn) -> Iterator[Finish]:
    """The users of the cohort move to a new name, which should outlast the load."""
    trait = payloads.trait_name(f"Buyers {target.start}", COHORT_ID)
    body = json.dumps(payloads.list_create(trait)).encode()
    generator.run(target.address, [request("POST", "/lists", body)], clients=1, seconds=60)

    def is_moving() -> bool:
        connection = http.client.HTTPConnection(*target.address, timeout=60)
        path = f"/api/v1/cohorts/{COHORT_ID}"
        connection.request("GET", path, headers={"api_key": ADMIN_KEY})
        status = json.load(connection.getresponse())["status"]
        connection.close()
        return bool(status == "renaming")

    def finish(result: Result) -> Figures:
        outlasted = is_moving()
        while is_moving():
            time.sleep(0.25)
        return {"outlasted": float(outlasted)}

    yield finish


@contextmanager
def memory_samples(target: Target, service: Gunicorn) -> Iterator[Finish]:
    """By how much the service's resident memory grew at most, in MB."""
    before = peak = service.resident_bytes()
    ended = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not ended.wait(_SAMPLE_SECONDS):
            peak = max(peak, service.resident_bytes())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield lambda result: {"memory_mb": (max(peak, service.resident_bytes()) - before) / 1e6}
    finally:
        ended.set()
        thread.join()


def noisy_batches(target: Target) -> Iterator[bytes]:
    """Batches of another app."""
    return batches(1000, target, first=_ELSEWHERE, key=NOISY_KEY)


def noisy_singles(target: Target) -> Iterator[bytes]:
    """Single identifies of another app."""
    return batches(1, target, first=2 * _ELSEWHERE, key=NOISY_KEY)
