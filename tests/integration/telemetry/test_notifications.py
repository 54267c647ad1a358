"""Notifications, to a real receiver."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest
import redis
import urllib3
from flask import Flask

from app.cohorts import Cohort, IncompleteReason, MembershipChange, VerifiedBy
from app.services import services
from app.settings import Settings
from app.store import Store, Tuning, connect
from app.telemetry.notifications import MAX_LISTED, DeliveryFailed, Notifier, Sender
from tests.support.effort import PARTITIONS

APP = "shop"
SECRET = "whsec_" + base64.b64encode(b"s" * 24).decode()
QUICK = urllib3.Retry(total=3, backoff_factor=0.01, allowed_methods=None)
# Bytes of a body that nobody should read.
ENDLESS = 32 << 20


class Received(NamedTuple):
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


class Receiver:
    """Receives notifications; ``statuses`` are the next replies, then 204.

    While ``is_endless``, replies have a body of ENDLESS bytes, of which ``taken`` were taken.
    ``retry_after`` is their Retry-After, and ``refused`` are texts that it never accepts.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.retry_after: str | None = None
        self.refused: list[str] = []
        self.refused_ids: set[str] = set()
        self.received: list[Received] = []
        self.statuses: list[int] = []
        self.is_endless, self.taken = False, 0

    def types(self) -> list[str]:
        return [one.document["type"] for one in self.received]


@contextmanager
def running_receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = receiver.statuses.pop(0) if receiver.statuses else 204
            if any(text in json.loads(body)["text"] for text in receiver.refused):
                receiver.refused_ids.add(self.headers["webhook-id"])
                status = 400
            if status < 300:
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.received.append(Received(headers, body))
            self.send_response(200 if receiver.is_endless and status == 204 else status)
            self.send_header("Content-Length", str(ENDLESS if receiver.is_endless else 0))
            if receiver.retry_after is not None:
                self.send_header("Retry-After", receiver.retry_after)
            self.end_headers()
            if receiver.is_endless:
                with suppress(OSError):
                    for _ in range(ENDLESS >> 20):
                        self.wfile.write(bytes(1 << 20))
                        receiver.taken += 1 << 20

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_address[1]}/hook/secret-path")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as receiver:
        yield receiver


@pytest.fixture(params=PARTITIONS)
def store(request: pytest.FixtureRequest, store_url: str, redis_client: redis.Redis) -> Store:
    return Store(connect(Settings(redis_url=store_url)), partitions=request.param)


@pytest.fixture
def notifier(store: Store, receiver: Receiver) -> Notifier:
    """A notifier that has passed over what was before."""
    say(store, "[Amplitude] One: 1")
    notifier = Notifier(store, Sender(receiver.url, SECRET, QUICK), "https://cohorts.example/")
    work(notifier)
    assert receiver.received == []
    return notifier


def say(store: Store, *traits: str) -> None:
    changes = [MembershipChange(Cohort.from_trait(trait), True, ["u1"]) for trait in traits]
    store.memberships.apply(APP, changes, source="test")


def work(notifier: Notifier) -> None:
    notifier._due = 0.0
    notifier.work()


def make_late(client: redis.Redis, late: bool) -> None:
    for key in client.scan_iter(match="*:due"):
        for cohort in client.zrange(key, 0, -1):
            client.zadd(key, {cohort: 1 if late else 1 << 52})


def test_change__is_notified_once__to_people_and_programs(
    store: Store, notifier: Notifier, receiver: Receiver
) -> None:
    store.completeness.raise_reason(APP, "1", IncompleteReason.SYNC_FAILED)
    store.completeness.raise_reason(APP, "1", IncompleteReason.SYNC_FAILED)
    other = Notifier(store, Sender(receiver.url, SECRET, QUICK), None)
    for one in (other, notifier, other, notifier):
        one._store.news._token = notifier._store.news._token  # as if its turn had come
        work(one)
    (received,) = receiver.received
    document = received.document
    assert document["type"] == "cohort.incomplete"
    assert document["data"] == {
        "app": APP,
        "cohorts": [{"id": "1", "name": "[Amplitude] One: 1"}],
        "count": 1,
        "reason": "sync_failed",
    }
    assert document["text"].startswith(
        "[Amplitude] One: 1 is incomplete: a sync failed, and no retry succeeded."
    )


def test_link__leads_to_the_cohort(store: Store, notifier: Notifier, receiver: Receiver) -> None:
    say(store, "a/b&c: x/y&z")
    store.completeness.raise_reason(APP, "x/y&z", IncompleteReason.DELETED_HERE)
    work(notifier)
    text = receiver.received[0].document["text"]
    assert text.endswith(". https://cohorts.example/cohort?id=x%2Fy%26z")


def test_signature__is_that_of_standard_webhooks(
    store: Store, notifier: Notifier, receiver: Receiver
) -> None:
    notifier.send_test()
    (received,) = receiver.received
    head = f"{received.headers['webhook-id']}.{received.headers['webhook-timestamp']}."
    digest = hmac.new(b"s" * 24, head.encode() + received.body, hashlib.sha256).digest()
    assert received.headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"


def test_verified__and_cleared__are_notified(
    store: Store, notifier: Notifier, receiver: Receiver
) -> None:
    store.completeness.verify(APP, "1", VerifiedBy.RESYNC)  # nothing was wrong
    store.completeness.raise_reason(APP, "1", IncompleteReason.SYNC_FAILED)
    store.completeness.clear_reason(APP, "1", IncompleteReason.SYNC_FAILED)
    work(notifier)
    store.completeness.raise_reason(APP, "1", IncompleteReason.STORE_LOST)
    store.completeness.verify(APP, "1", VerifiedBy.RESYNC)
    work(notifier)
    assert receiver.types() == [
        "cohort.incomplete",
        "cohort.unverified",
        "cohort.incomplete",
        "cohort.verified",
    ]


def test_state_of_a_later_version__does_not_stop_what_follows(
    store: Store, notifier: Notifier, receiver: Receiver, redis_client: redis.Redis
) -> None:
    key = store.keys.transitions(APP, store.keys.partition("1"))
    later = {"cohort": "1", "from": "incomplete", "to": "doubtful", "raised": "", "cleared": ""}
    redis_client.xadd(key, later)
    store.completeness.raise_reason(APP, "1", IncompleteReason.SYNC_FAILED)
    work(notifier)
    assert receiver.types() == ["cohort.incomplete"]


def test_lateness__is_notified_when_it_begins_and_ends(
    store: Store, notifier: Notifier, receiver: Receiver, redis_client: redis.Redis
) -> None:
    for late in (True, True, False, False, True):
        make_late(redis_client, late)
        work(notifier)
    assert receiver.types() == ["cohort.late", "cohort.arriving", "cohort.late"]
    for _ in store.jobs.delete_cohort(APP, "1"):
        pass
    work(notifier)
    assert len(receiver.received) == 3


def test_late__after_very_many_others__is_notified(
    store: Store, notifier: Notifier, receiver: Receiver, redis_client: redis.Redis
) -> None:
    due = store.keys.due(APP, store.keys.partition("1"))
    others = [f"c{n}" for n in range(1000)]
    redis_client.zadd(due, dict.fromkeys(others, 1))
    redis_client.sadd(due.removesuffix("due") + "notified:late", *others)
    redis_client.zadd(due, {"1": 2})
    work(notifier)
    (received,) = receiver.received
    assert received.document["type"] == "cohort.late"
    assert received.document["data"]["cohorts"][0]["id"] == "1"


def test_many_cohorts__share_one_notification(
    store: Store, notifier: Notifier, receiver: Receiver
) -> None:
    many = [f"c{n}" for n in range(90)]
    say(store, *(f"name: {cohort}" for cohort in many))
    for cohort in many:
        store.completeness.raise_reason(APP, cohort, IncompleteReason.STORE_SET_BACK)
    work(notifier)
    found = [one.document["data"] for one in receiver.received]
    assert len(found) == store.keys.partitions
    assert sum(data["count"] for data in found) == 90
    assert all(len(data["cohorts"]) == min(MAX_LISTED, data["count"]) for data in found)
    data, text = found[0], receiver.received[0].document["text"]
    assert text.startswith(f"{data['count']} cohorts: {data['cohorts'][0]['name']}, ")
    assert ", … Each is incomplete: the store returned to an earlier state, so" in text


def test_name__that_mentions_everybody__is_escaped(
    store: Store, notifier: Notifier, receiver: Receiver
) -> None:
    say(store, "<!channel> \u202e<https://evil|x>: 7")
    store.completeness.raise_reason(APP, "7", IncompleteReason.SYNC_FAILED)
    work(notifier)
    text = receiver.received[0].document["text"]
    assert "<" not in text
    assert "\u202e" not in text
    assert "&lt;!channel&gt;" in text


def test_receiver__that_fails__is_tried_again_and_gets_it_once(
    store: Store, notifier: Notifier, receiver: Receiver
) -> None:
    store.completeness.raise_reason(APP, "1", IncompleteReason.SYNC_FAILED)
    receiver.statuses = [500, 500]
    work(notifier)
    assert receiver.types() == ["cohort.incomplete"]
    store.completeness.clear_reason(APP, "1", IncompleteReason.SYNC_FAILED)
    receiver.statuses = [500] * 4
    work(notifier)
    notifier.work()  # waits
    assert len(receiver.received) == 1
    work(notifier)
    assert receiver.types() == ["cohort.incomplete", "cohort.unverified"]


@pytest.mark.parametrize("retry_after", ["soon", "Fri, 31 Dec 99999 23:59:59 GMT", "9" * 5000])
def test_receiver__that_says_oddly_when_to_try_again__is_tried_again(
    store: Store, receiver: Receiver, retry_after: str
) -> None:
    receiver.statuses, receiver.retry_after = [503], retry_after
    Notifier(store, Sender(receiver.url, None, QUICK), None).send_test()
    assert receiver.types() == ["test"]


def in_one_partition(store: Store, count: int) -> list[str]:
    """Cohort ids with the same home partition as the cohort 1."""
    every = (f"c{n}" for n in range(1000))
    home = store.keys.partition("1")
    return [cohort for cohort in every if store.keys.partition(cohort) == home][:count]


def two_of_three_incomplete(store: Store) -> list[str]:
    """Three cohorts of one partition, of which the first two are incomplete."""
    cohorts = in_one_partition(store, 3)
    say(store, *(f"{cohort}: {cohort}" for cohort in cohorts))
    for cohort in cohorts[:2]:
        store.completeness.raise_reason(APP, cohort, IncompleteReason.SYNC_FAILED)
    return cohorts


def test_receiver__that_refuses_one_of_several__gets_the_others_once(
    store: Store, notifier: Notifier, receiver: Receiver
) -> None:
    first, second, third = two_of_three_incomplete(store)
    receiver.refused = [f"{second}: {second}"]
    for _ in range(3):
        work(notifier)
    # Another change, before it accepts them.
    store.completeness.raise_reason(APP, third, IncompleteReason.SYNC_FAILED)
    work(notifier)
    receiver.refused = []
    other = Notifier(store, Sender(receiver.url, SECRET, QUICK), None)
    other._store.news._token = notifier._store.news._token  # as if its turn had come
    work(other)
    told = [one.document["data"]["cohorts"][0]["id"] for one in receiver.received]
    assert told == [first, second, third]
    assert len({one.headers["webhook-id"] for one in receiver.received}) == 3
    assert receiver.refused_ids == {receiver.received[1].headers["webhook-id"]}


def test_receiver__that_refuses_one_until_it_has_expired__gets_what_follows(
    store: Store, notifier: Notifier, receiver: Receiver, redis_client: redis.Redis
) -> None:
    first, second, third = two_of_three_incomplete(store)
    receiver.refused = [f"{second}: {second}"]
    work(notifier)
    redis_client.delete(store.keys.transitions(APP, store.keys.partition("1")))
    store.completeness.raise_reason(APP, third, IncompleteReason.SYNC_FAILED)
    work(notifier)
    told = [one.document["data"]["cohorts"][0]["id"] for one in receiver.received]
    assert told == [first, third]


def test_receiver__that_refuses_one_until_others_are_trimmed__gets_all_that_are_left(
    store: Store, notifier: Notifier, receiver: Receiver, redis_client: redis.Redis
) -> None:
    first, second, third = two_of_three_incomplete(store)
    store.completeness.raise_reason(APP, third, IncompleteReason.SYNC_FAILED)
    receiver.refused = [f"{third}: {third}"]
    work(notifier)
    stream = store.keys.transitions(APP, store.keys.partition("1"))
    redis_client.xtrim(stream, 2, approximate=False)
    receiver.refused = [f"{second}: {second}"]
    work(notifier)
    receiver.refused = []
    work(notifier)
    told = [one.document["data"]["cohorts"][0]["id"] for one in receiver.received]
    assert told == [first, second, second, third]
    assert len({one.headers["webhook-id"] for one in receiver.received}) == 4


def test_lateness__of_which_some_is_refused__is_told_once(
    store: Store, notifier: Notifier, receiver: Receiver, redis_client: redis.Redis
) -> None:
    one, other = in_one_partition(store, 2)
    say(store, f"{one}: {one}", f"{other}: {other}")
    for cohort in (one, other):
        store.freshness.call(APP, "received", [cohort])
    make_late(redis_client, True)
    receiver.refused = [f"{other}: {other}"]
    for _ in range(3):
        work(notifier)
    receiver.refused = []
    work(notifier)
    told = [told.document["data"]["cohorts"][0]["id"] for told in receiver.received]
    assert sorted(told) == sorted({*told, one, other})


def test_changes_of_a_cohort__among_those_of_others__are_told_in_order(
    store: Store, notifier: Notifier, receiver: Receiver
) -> None:
    one, other = in_one_partition(store, 2)
    say(store, f"{one}: {one}", f"{other}: {other}")
    store.completeness.raise_reason(APP, one, IncompleteReason.SYNC_FAILED)
    work(notifier)
    receiver.received.clear()
    store.completeness.verify(APP, one, VerifiedBy.RESYNC)
    for _ in range(2):
        store.completeness.raise_reason(APP, other, IncompleteReason.SYNC_FAILED)
        store.completeness.verify(APP, other, VerifiedBy.RESYNC)
    work(notifier)
    told = [
        received.document["type"]
        for received in receiver.received
        if received.document["data"]["cohorts"] == [{"id": other, "name": f"{other}: {other}"}]
    ]
    assert told == ["cohort.incomplete", "cohort.verified"] * 2


def lose(store: Store, client: redis.Redis) -> None:
    """Let the store lose its data and get some again, and a worker notice it."""
    losses = store.losses
    marks = {
        place: losses.compare(place, None, None, "token", advance=True)[1]
        for place in losses.partitions([APP])
    }
    client.flushall()
    say(store, "[Amplitude] One: 1")
    found = [
        loss
        for place, mark in marks.items()
        if (loss := losses.compare(place, mark, None, "token", advance=True)[0])
    ]
    assert found
    for loss in losses.of([APP]):
        for _ in losses.mark_cohorts(loss):
            pass


def test_loss__and_what_it_makes_incomplete__are_notified(
    store: Store, notifier: Notifier, receiver: Receiver, redis_client: redis.Redis
) -> None:
    """What has been notified is lost too."""
    lose(store, redis_client)
    work(notifier)
    work(notifier)
    assert receiver.types() == ["store.lost", "cohort.incomplete"]


def test_loss__acknowledged_before_there_was_a_receiver__is_not_notified(
    store: Store, receiver: Receiver, redis_client: redis.Redis
) -> None:
    say(store, "[Amplitude] One: 1")
    lose(store, redis_client)
    store.losses.acknowledge([APP])
    notifier = Notifier(store, Sender(receiver.url, SECRET, QUICK), None)
    work(notifier)
    work(notifier)
    assert receiver.types() == []


def test_loss__long_before_there_was_a_receiver__is_notified_without_what_it_made_incomplete(
    store: Store, store_url: str, receiver: Receiver, redis_client: redis.Redis
) -> None:
    say(store, "[Amplitude] One: 1")
    lose(store, redis_client)
    later = Tuning(store_now=lambda: time.time() + 2 * 3600)
    client = connect(Settings(redis_url=store_url))
    store = Store(client, partitions=store.keys.partitions, tuning=later)
    notifier = Notifier(store, Sender(receiver.url, SECRET, QUICK), None)
    work(notifier)
    work(notifier)
    assert receiver.types() == ["store.lost"]


def test_loss__after_one_that_was_found_while_the_clock_was_ahead__is_notified(
    store: Store, notifier: Notifier, receiver: Receiver, redis_client: redis.Redis
) -> None:
    lose(store, redis_client)
    store.news.note_loss(APP, int(time.time() * 1000) + 10 * 24 * 3600 * 1000)
    work(notifier)
    work(notifier)
    assert receiver.types() == ["store.lost", "cohort.incomplete"]


def test_loss__while_the_store_is_full__is_notified_once(
    store: Store, notifier: Notifier, receiver: Receiver, redis_client: redis.Redis
) -> None:
    lose(store, redis_client)
    redis_client.config_set("maxmemory", 1)
    try:
        work(notifier)
        work(notifier)
    finally:
        redis_client.config_set("maxmemory", 0)
    assert receiver.types() == ["store.lost", "cohort.incomplete"]


def test_receiver__whose_replies_have_no_end__is_not_read(store: Store, receiver: Receiver) -> None:
    receiver.is_endless = True
    receiver.statuses = [500]
    Notifier(store, Sender(receiver.url, None, QUICK), None).send_test()
    assert receiver.taken < ENDLESS // 2
    assert receiver.types() == ["test"]


@pytest.mark.parametrize("status", [301, 400, 410])
def test_receiver__that_refuses__is_told_without_its_address(
    store: Store, receiver: Receiver, status: int
) -> None:
    receiver.statuses = [status]
    with pytest.raises(DeliveryFailed, match=f"^status {status}$"):
        Notifier(store, Sender(receiver.url, None, QUICK), None).send_test()
    gone = Sender("http://127.0.0.1:1/secret-path", None, QUICK.new(total=0))
    with pytest.raises(DeliveryFailed) as failed:
        Notifier(store, gone, None).send_test()
    assert str(failed.value) == "no reply (NewConnectionError)"


def test_command__sends_a_test(make_app: Callable[..., Flask], receiver: Receiver) -> None:
    app = make_app(notify_url=receiver.url)
    done = app.test_cli_runner().invoke(args=["notify", "test"])
    assert (done.exit_code, done.output) == (0, "Delivered.\n")
    assert receiver.types() == ["test"]
    assert "webhook-signature" not in receiver.received[0].headers
    without = make_app().test_cli_runner().invoke(args=["notify", "test"])
    assert (without.exit_code, "NOTIFY_URL is not set" in without.output) == (1, True)
    assert services(app).settings.notify_url not in repr(services(app).settings)
