"""What a check works with: calls to the receiver, and expectations about replies and state."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from .. import payloads
from ..cohort_sync import Mode
from ..connection import WEBHOOK_USER_AGENT, Auth, Connection, Reply, Target
from ..encode import to_json
from ..expected_state import format_value
from ..reader import Reader, Traits
from ..replies import excerpt
from .model import Options, Sample

MAX_THROTTLED_SECONDS = 30.0
# Between attempts, where a 429 carries no Retry-After.
THROTTLED_WAIT_SECONDS = 0.5
USERS_PER_READ = 1_000


class Failed(Exception):
    """The receiver does not meet the requirement. The text is the reason."""


class Skipped(Exception):
    """The check can't run. The text is what it needs."""


class Context:
    """Calls to the receiver and, with a reader, comparison of its state.

    Every check draws its own users and cohorts, so checks are independent of each other.
    """

    def __init__(self, options: Options, reader: Reader | None, samples: list[Sample]) -> None:
        self.options = options
        self.reader = reader
        self._samples = samples
        self._check = ""
        self._random = random.Random()
        self._connections: list[tuple[Target, Connection]] = []

    def begin(self, check: str) -> None:
        """Begin a check: seed its users and cohorts with the run's seed and its name."""
        self._check = check
        self._random = random.Random(f"certify {self.options.seed} {check}")

    def close(self) -> None:
        """Close the connections."""
        for _, connection in self._connections:
            connection.close()

    def users(self, count: int) -> list[str]:
        """Draw user ids that no other check uses."""
        return payloads.user_ids(count, self._random.getrandbits(64))

    def cohort(self, name: str = "Certify") -> tuple[str, str]:
        """Draw a cohort that no other check uses: (name, id)."""
        return name, f"{self._random.getrandbits(40):010x}"

    def trait(self, name: str = "Certify") -> str:
        """Draw the trait of a cohort that no other check uses."""
        return payloads.trait_name(*self.cohort(name))

    def message_id(self, member: bool = True) -> str:
        """Draw a webhook's message id."""
        return payloads.message_id(self._random, member)

    def target(self, auth: Auth, key: str | None = None) -> Target:
        """Return the receiver with other credentials."""
        target = self.options.target
        return replace(
            target,
            auth=auth,
            key=target.key if key is None else key,
            extra_headers={},  # they may hold credentials
        )

    def post(
        self,
        path: str,
        body: Any,
        *,
        target: Target | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send a payload, or bytes as they are, and sample the latency; retry a 429."""
        connection = self._connection(target or self.options.target)
        raw = body if isinstance(body, bytes) else to_json(body)
        if path == self.options.webhook_path:
            headers = {"User-Agent": WEBHOOK_USER_AGENT, **(headers or {})}
        reply = self.retry_throttled(lambda: connection.post(path, raw, headers))
        self._sample(path, body, reply)
        return reply

    def post_at_once(
        self, calls: Sequence[tuple[str, Any]], *, retry_throttled: bool = True
    ) -> list[Reply]:
        """Send several (path, payload) calls at the same time, each on its own connection."""

        def post(call: tuple[str, Any]) -> Reply:
            path, body = call
            with self.connection() as connection:
                raw = to_json(body)
                if retry_throttled:
                    reply = self.retry_throttled(lambda: connection.post(path, raw))
                else:
                    reply = connection.post(path, raw)
            self._sample(path, body, reply)
            return reply

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(post, calls))

    def retry_throttled(self, send: Callable[[], Reply]) -> Reply:
        """Send until the reply is not a 429, for up to 30 s: throttling is documented behaviour."""
        deadline = time.monotonic() + MAX_THROTTLED_SECONDS
        while (reply := send()).status == 429:
            wait = reply.retry_after
            wait = THROTTLED_WAIT_SECONDS if wait is None else max(wait, 0.05)
            if time.monotonic() + wait > deadline:
                break
            time.sleep(wait)
        return reply

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Open a separate connection, for a check that breaks it or needs several."""
        connection = Connection(self.options.target)
        try:
            yield connection
        finally:
            connection.close()

    def identify(self, body: Any, **options: Any) -> Reply:
        """Send an identify or a batch."""
        return self.post(self.options.path, body, **options)

    def webhook(self, body: Any, **options: Any) -> Reply:
        """Send a cohort webhook."""
        return self.post(self.options.webhook_path, body, **options)

    def expect_trait(self, trait: str, expected: Mapping[str, bool | None]) -> None:
        """Fail unless each user's trait has the expected value (None: the trait is absent).

        Without a reader, this passes.
        """
        if self.reader is None:
            return
        users = list(expected)
        for user, traits in zip(users, self._traits(self.reader, users), strict=True):
            value = traits.get(trait)
            if value is not expected[user]:
                raise Failed(
                    f"user {user!r}, trait {trait!r}: expected {format_value(expected[user])}, "
                    f"found {format_value(value)}"
                    + (f"; the user has {traits!r}" if traits else "")
                )

    def expect_exact_traits(self, user: str, expected: Traits) -> None:
        """Fail unless the user has these traits and no others. Without a reader, this passes."""
        if self.reader is not None and (found := self._traits(self.reader, [user])[0]) != expected:
            raise Failed(f"user {user!r}: expected {expected!r}, found {found!r}")

    def _traits(self, reader: Reader, users: Sequence[str]) -> list[Traits]:
        return [
            traits
            for start in range(0, len(users), USERS_PER_READ)
            for traits in reader.traits(users[start : start + USERS_PER_READ])
        ]

    def _connection(self, target: Target) -> Connection:
        # A list, because a target holds a dict and is not hashable.
        for known, connection in self._connections:
            if known == target:
                return connection
        connection = Connection(target)
        self._connections.append((target, connection))
        return connection

    def _sample(self, path: str, body: Any, reply: Reply) -> None:
        if reply.ok:
            users = payloads.count_users(body)
            self._samples.append(Sample(self._check, self._mode(path), users, reply.seconds))

    def _mode(self, path: str) -> Mode:
        if path == self.options.webhook_path:
            return "webhook"
        return "list" if path.startswith(self.options.lists_path) else "property"


def expect(reply: Reply, *statuses: int, label: str = "") -> Reply:
    """Return the reply; fail unless it has one of the statuses."""
    if reply.status not in statuses:
        expected = " or ".join(map(str, statuses))
        got = str(reply) + (f" {excerpt(reply.body, 160)}" if reply.body else "")
        raise Failed(f"{label + ': ' if label else ''}expected {expected}, got {got}")
    return reply
