"""The stream of changes over real sockets: reconnects, load, heartbeats, shutdown."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

import pytest
import redis

from simulator import payloads
from tests.support.effort import PARTITIONS, thorough
from tests.support.polling import DEADLINE, wait_until
from tests.support.service import APP, Service, running
from tests.support.stores import running_store, socket_url, start_store, store_folder

READ_KEY = "TEST_READ_KEY"
TRAIT = "[Amplitude] one: 1"


class Event(NamedTuple):
    id: str
    data: Any


def fields_of(message: bytes) -> dict[str, str]:
    """The fields of a message; none of a comment."""
    lines = message.decode().split("\n")
    return dict(line.split(": ", 1) for line in lines if not line.startswith(":"))


class Stream:
    """One connection that follows the changes."""

    opened: ClassVar[list[Stream]] = []

    def __init__(self, service: Service, query: str = "", last_event_id: str = "") -> None:
        address = urlsplit(service.url)
        self.socket = socket.create_connection((address.hostname, address.port), timeout=DEADLINE)
        lines = [
            f"GET /api/v1/changes/stream{query} HTTP/1.1",
            "Host: x",
            f"api_key: {READ_KEY}",
            *([f"Last-Event-ID: {last_event_id}"] if last_event_id else []),
        ]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self._file = self.socket.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        self.headers: dict[str, str] = {}
        while line := self._file.readline().strip():
            name, _, value = line.decode().partition(": ")
            self.headers[name.lower()] = value
        self._rest = b""
        self.opened.append(self)

    def messages(self) -> Iterator[bytes]:
        """Whatever stands between two empty lines, until the server ends the stream."""
        while size := int(self._file.readline() or b"0", 16):
            self._rest += self._file.read(size)
            self._file.readline()
            while b"\n\n" in self._rest:
                message, _, self._rest = self._rest.partition(b"\n\n")
                yield message

    def begin(self) -> str:
        """The position that the stream begins with, before any change."""
        fields = fields_of(next(self.messages()))
        assert (fields["retry"], fields["event"]) == ("1000", "position")
        assert json.loads(fields["data"]) == {"next": fields["id"]}
        return fields["id"]

    def events(self) -> Iterator[Event]:
        """The changes."""
        for message in self.messages():
            fields = fields_of(message)
            if fields.get("event") == "change":
                yield Event(fields["id"], json.loads(fields["data"]))

    def next(self) -> Event:
        return next(self.events())

    @classmethod
    def close_all(cls) -> None:
        while cls.opened:
            cls.opened.pop().close()

    def close(self) -> None:
        self.socket.close()
        self._file.close()


@contextmanager
def serving(store_url: str, **env: str) -> Iterator[Service]:
    settings = {
        "REDIS_URL": store_url,
        "RATE_LIMIT": "off",
        "READ_API_KEYS": f"{APP}:{READ_KEY}",
        "STREAM_HEARTBEAT_SECONDS": "0.3",
    }
    with running(settings | env) as service:
        try:
            yield service
        finally:
            Stream.close_all()


@pytest.fixture(scope="module")
def running_service(store_url: str) -> Iterator[Service]:
    with serving(store_url, WEB_CONCURRENCY="1") as service:
        yield service


@pytest.fixture
def service(running_service: Service) -> Iterator[Service]:
    """One worker, for the tests that need no other; their streams are closed after each."""
    yield running_service
    Stream.close_all()


def test_stream__says_what_it_is_and_tells_changes_as_they_happen(service: Service) -> None:
    service.post(payloads.identify("before", TRAIT, True))
    stream = Stream(service)
    assert stream.status == 200
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    service.post(payloads.batch(["a", "b"], TRAIT, True))
    event = stream.next()
    assert event.data.pop("at") > 0
    assert event.data == {"cohortId": "1", "change": "entered", "userIds": ["a", "b"]}


def test_stream__with_nothing_to_tell__beats(service: Service) -> None:
    stream = Stream(service)
    assert stream.begin()
    assert [*islice(stream.messages(), 2)] == [b": nothing new"] * 2


@pytest.fixture(scope="module", params=PARTITIONS)
def service_and_store(request: pytest.FixtureRequest) -> Iterator[tuple[Service, str]]:
    env = {"STORE_PARTITIONS": str(request.param), "WEB_CONCURRENCY": "2"}
    with running_store() as url, serving(url, **env) as service:
        yield service, url


@pytest.fixture
def partitioned(service_and_store: tuple[Service, str]) -> Iterator[Service]:
    """Two workers on an empty store of one or three partitions."""
    service, url = service_and_store
    with redis.Redis.from_url(url) as client:
        client.flushall()
    yield service
    Stream.close_all()


@pytest.mark.parametrize("query", ["", "?cursor=earliest"])
def test_follower__that_reconnects_before_the_first_event__misses_nothing(
    partitioned: Service, query: str
) -> None:
    stream = Stream(partitioned, query)
    beginning = stream.begin()
    stream.close()
    users = [f"u{n}" for n in range(10)]
    for user in users:
        partitioned.post(payloads.identify(user, TRAIT, True))
    again = Stream(partitioned, query, beginning)
    assert again.begin() == beginning
    events = islice(again.events(), len(users))
    assert sorted(event.data["userIds"][0] for event in events) == users


@thorough
def test_followers__that_reconnect_under_load__skip_and_repeat_nothing(
    partitioned: Service,
) -> None:
    """Each user's transitions alternate: a skipped or repeated one shows, and so does a total."""
    users, rounds = 40, 20
    sent = threading.Event()
    failures: list[Any] = []

    def send(number: int) -> None:
        mine = [f"u{number}-{n}" for n in range(users)]
        for turn in range(rounds):
            batch = payloads.batch(mine, TRAIT, turn % 2 == 0)
            if partitioned.post(batch).status != 200:
                failures.append(number)

    def follow(every: int, found: list[tuple[str, str]]) -> None:
        last, expected = "", 3 * users * rounds
        while len(found) < expected:
            stream = Stream(partitioned, "?cursor=earliest", last)
            for count, event in enumerate(stream.events(), 1):
                last = event.id
                found += [(user, event.data["change"]) for user in event.data["userIds"]]
                if count == every or len(found) >= expected:
                    break
            stream.close()
        sent.wait(DEADLINE)
        stream = Stream(partitioned, "", last)
        # a heartbeat tells that all is told
        rest = stream.begin(), next(stream.messages())
        if rest != (last, b": nothing new"):
            failures.append(rest)

    followed: list[list[tuple[str, str]]] = [[] for _ in range(3)]
    followers = [
        threading.Thread(target=follow, args=(every, found), daemon=True)
        for every, found in zip((1, 7, 10_000), followed, strict=True)
    ]
    senders = [threading.Thread(target=send, args=(n,), daemon=True) for n in range(3)]
    for thread in [*followers, *senders]:
        thread.start()
    for thread in senders:
        thread.join(DEADLINE)
    sent.set()
    for thread in followers:
        thread.join(DEADLINE)
    assert not failures
    for found in followed:
        assert len(found) == 3 * users * rounds
        changes: dict[str, list[str]] = {}
        for user, change in found:
            changes.setdefault(user, []).append(change)
        assert set(map(tuple, changes.values())) == {("entered", "left") * (rounds // 2)}


def test_cursor__of_what_is_gone__is_410_on_connecting(
    service: Service, redis_client: redis.Redis
) -> None:
    stream = Stream(service)
    service.post(payloads.identify("a", TRAIT, True))
    last = stream.next().id
    stream.close()
    for user in "bcd":
        service.post(payloads.identify(user, TRAIT, True))
    redis_client.xtrim(f"cohorts:{{{APP}}}:changes", maxlen=1, approximate=False)
    assert Stream(service, "", last).status == 410


def test_follower__that_hangs_up__is_noticed_at_once(store_url: str) -> None:
    env = {"MAX_FOLLOWERS": "1", "WEB_CONCURRENCY": "1", "STREAM_HEARTBEAT_SECONDS": "600"}
    with serving(store_url, **env) as service:
        first = Stream(service)
        assert first.begin()
        refused = Stream(service)
        assert refused.status == 503
        assert refused.headers["retry-after"] == "5"
        first.close()
        wait_until(lambda: Stream(service).status == 200)


def test_shutdown__with_followers__ends_their_streams_and_the_process(store_url: str) -> None:
    with serving(store_url) as service:
        streams = [Stream(service) for _ in range(10)]
        assert all(stream.begin() for stream in streams)
        started = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        for stream in streams:
            assert set(stream.messages()) <= {b": nothing new"}
        assert service.process.wait(10) == 0
        assert time.monotonic() - started < 8


@thorough
def test_store__away_for_a_while__the_stream_goes_on_when_it_is_back(
    service: Service, redis_client: redis.Redis
) -> None:
    """The store stays; its connections are cut, over and over, for a second."""
    stream = Stream(service)
    until = time.monotonic() + 1
    while time.monotonic() < until:
        redis_client.client_kill_filter(_type="normal", skipme=True)
    assert service.post(payloads.identify("a", TRAIT, True)).status == 200
    assert stream.next().data["userIds"] == ["a"]


def test_store__restored_from_a_backup__the_stream_says_so_and_ends() -> None:
    """The follower has changes that the restored store does not have."""
    with store_folder() as folder:
        server = start_store(folder)
        try:
            with serving(socket_url(folder), WEB_CONCURRENCY="1") as service:
                service.post(payloads.identify("kept", TRAIT, True))
                with redis.Redis.from_url(socket_url(folder)) as client:
                    client.save()
                backup = (folder / "dump.rdb").read_bytes()
                stream = Stream(service, "?cursor=earliest")
                assert stream.next().data["userIds"] == ["kept"]
                service.post(payloads.identify("lost", TRAIT, True))
                last = stream.next()
                assert last.data["userIds"] == ["lost"]
                server.kill()
                server.wait(DEADLINE)
                (folder / "dump.rdb").write_bytes(backup)
                server = start_store(folder)
                said = islice(stream.messages(), 200)
                *_, end = (message for message in said if not message.startswith(b":"))
                fields = fields_of(end)
                assert (fields["event"], "id" in fields) == ("cursor_expired", False)
                assert json.loads(fields["data"])["reason"] == "cursor_expired"
                assert Stream(service, "", last.id).status == 410
        finally:
            server.kill()
            server.wait(DEADLINE)
