"""A sender that behaves as Amplitude does: it repeats whatever was not answered with 200."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType

import redis
import urllib3

from tests.support.polling import DEADLINE
from tests.support.service import COHORT_PATH

SENDERS = 4
USERS_PER_BATCH = 40
MAX_BATCHES = 10_000  # of each sender, if nothing stops it
TRAIT = "[Amplitude] Under load: load-1"
COHORT_ID = "load-1"


class Load:
    """Sends batches of new users from several threads while the ``with`` block runs.

    Leaving the block finishes it.

    Args:
        url: gives the service's address at each request; it may change.
        key: the API key.
    """

    def __init__(self, url: Callable[[], str], key: str) -> None:
        self._url = url
        self._key = key
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._send, args=(number,)) for number in range(SENDERS)
        ]
        self.answered: list[str] = []  # user ids; append-only, so that reading needs no lock
        self.refused: Counter[str] = Counter()  # how requests failed before they were repeated

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind:
            self._stop.set()
        else:
            self.finish()

    def finish(self) -> None:
        """Let every sender finish its last batch. Fails if one could not."""
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE)
        assert not self.refused.keys() & {"gave up", "ran out of batches"}, self.refused

    def _send(self, sender: int) -> None:
        # Closed at the end: a service that stops would wait for an idle connection.
        with urllib3.PoolManager(retries=False, timeout=DEADLINE) as http:
            for number in range(MAX_BATCHES):
                users = [f"user-{sender}-{number}-{i}" for i in range(USERS_PER_BATCH)]
                if not self._send_until_answered(http, users):
                    self.refused["gave up"] += 1
                    return
                self.answered += users
                if self._stop.is_set():
                    return
            self.refused["ran out of batches"] += 1

    def _send_until_answered(self, http: urllib3.PoolManager, users: list[str]) -> bool:
        body = json.dumps(
            {"batch": [{"type": "identify", "userId": u, "traits": {TRAIT: True}} for u in users]}
        )
        headers = {
            "Content-Type": "application/json",
            **urllib3.make_headers(basic_auth=f"{self._key}:"),
        }
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            try:
                reply = http.request("POST", self._url() + COHORT_PATH, body=body, headers=headers)
            except urllib3.exceptions.HTTPError as error:
                self.refused[type(error).__name__] += 1
            else:
                if reply.status == 200:
                    return True
                self.refused[f"{reply.status} {reply.json().get('reason')}"] += 1
            self._stop.wait(0.02)  # a sender's pause before it repeats
        return False


def check_complete(client: redis.Redis, app_id: str, users: list[str]) -> None:
    """Fail unless every user has the trait, is a member, and entered exactly once."""
    base = f"cohorts:{{{app_id}}}:"
    pipeline = client.pipeline(transaction=False)
    for user in users:
        pipeline.hget(f"{base}user:{user}", TRAIT)
    lost = [user for user, value in zip(users, pipeline.execute(), strict=True) if value != "true"]
    assert not lost, f"{len(lost)} of {len(users)} answered writes are lost: {lost[:3]}"

    members = set(client.zrange(f"{base}cohort:{COHORT_ID}:members", 0, -1))
    assert members == set(users)

    entered: Counter[str] = Counter()
    for _, entry in client.xrange(f"{base}changes"):
        assert entry["change"] == "entered"
        entered.update(json.loads(entry["users"]))
    assert entered == Counter(users)
