"""Four senders about the same users at once: hash, members and stream agree, and are checked."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
import urllib3

from simulator import payloads
from tests.support.cli import flask
from tests.support.effort import THOROUGH, thorough
from tests.support.polling import DEADLINE
from tests.support.service import APP, KEY, Service, running
from tests.support.stores import running_store

SECONDS = 6 if THOROUGH else 2
SENDERS = 4
MOST_REQUESTS = 3000  # of each sender
USERS = [f"user-{n}" for n in range(200)]
NAME, COHORT = "Power: users", "abc123"
TRAIT = payloads.trait_name(NAME, COHORT)


@pytest.fixture(
    params=[
        pytest.param(1, id="one partition", marks=thorough),
        pytest.param(3, id="three partitions"),
    ]
)
def settings(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The environment of a service with a store of its own: its layout is not the others'."""
    with running_store() as url:
        yield {"REDIS_URL": url, "STORE_PARTITIONS": str(request.param)}


class Sender:
    """Says something about some of the users, from one of the sources, and often says it again."""

    def __init__(self, service: Service, number: int) -> None:
        self.service = service
        self.chance = random.Random(number)
        self.answers: Counter[int | str] = Counter()
        headers = urllib3.make_headers(basic_auth=f"{KEY}:")
        headers["Content-Type"] = "application/json"
        self.http = urllib3.PoolManager(retries=False, timeout=DEADLINE, headers=headers)

    def run(self) -> Counter[int | str]:
        ends = time.monotonic() + SECONDS
        for _ in range(MOST_REQUESTS):
            if time.monotonic() > ends:
                break
            path, body = self.request()
            for _ in range(self.chance.choice((1, 1, 2, 3))):
                self.send(path, json.dumps(body).encode())
        return self.answers

    def request(self) -> tuple[str, payloads.Payload]:
        users = self.chance.sample(USERS, self.chance.randint(1, 60))
        member = self.chance.random() < 0.5
        kind = self.chance.randrange(4)
        if kind == 0:
            # both statements about some users in one request; the last one is the one that counts
            batch = payloads.batch(users, TRAIT, member)
            batch["batch"] += payloads.batch(users[:10], TRAIT, not member)["batch"]
            return payloads.COHORT_PATH, batch
        if kind == 1:
            return payloads.WEBHOOK_PATH, payloads.webhook(
                NAME,
                COHORT,
                users,
                member,
                computed_time=int(time.time()) - self.chance.randrange(3),
                message_id=payloads.message_id(self.chance, member),
            )
        return f"/lists/{COHORT}/{'add' if member else 'remove'}", payloads.list_users(users)

    def send(self, path: str, body: bytes) -> None:
        # Now and then it doesn't wait for the answer: what it says next comes at the same moment.
        wait = 0.002 if self.chance.random() < 0.1 else DEADLINE
        timeout = urllib3.Timeout(connect=DEADLINE, read=wait)  # in any case it is sent
        try:
            reply = self.http.request("POST", self.service.url + path, body=body, timeout=timeout)
        except urllib3.exceptions.HTTPError as error:
            self.answers[type(error).__name__] += 1
        else:
            self.answers[reply.status] += 1


@thorough
def test_adds_and_removes__of_the_same_users_at_once__leave_all_parts_in_agreement(
    settings: dict[str, str],
) -> None:
    url = settings["REDIS_URL"]
    found = []
    with running({**settings, "RATE_LIMIT": "off", "WEB_CONCURRENCY": "2"}) as service:
        assert service.post(payloads.list_create(TRAIT), "/lists").status == 200
        with ThreadPoolExecutor(SENDERS) as pool:
            sending = [pool.submit(Sender(service, n).run) for n in range(SENDERS)]
            while not all(future.done() for future in sending):
                found.append(check(url, settings))
            answers = sum((future.result() for future in sending), Counter[int | str]())
    found.append(check(url, settings))

    assert all(report["ok"] for report in found), found
    assert len(found) >= 2
    assert answers.keys() <= {200, "ReadTimeoutError"}, answers
    assert answers[200] > 100
    last = found[-1]
    assert last["memberships"] == last["fields"] == len(USERS)
    proofs = last["streams"]
    assert len(proofs) == int(settings["STORE_PARTITIONS"])
    assert all(proof["whole"] for proof in proofs)
    assert sum(proof["agreeing"] for proof in proofs) == len(USERS)
    assert sum(proof["transitions"] for proof in proofs) > 10 * len(USERS)
    assert sum(p["perhaps_erased"] + p["members_unverified"] for p in proofs) == 0

    # and the same without the checker, as a reader sees it
    with redis.Redis.from_url(url, decode_responses=True) as client:
        for key in client.scan_iter(match=f"cohorts:{{{APP}*:user:*"):
            base, user = key.split("user:", 1)
            member = client.zscore(f"{base}cohort:{COHORT}:members", user) is not None
            assert client.hgetall(key) == {TRAIT: str(member).lower()}


def check(url: str, settings: dict[str, str]) -> dict:
    run = flask(url, "store", "check", "--json", **settings)
    assert run.stdout, run.stderr
    return json.loads(run.stdout)
