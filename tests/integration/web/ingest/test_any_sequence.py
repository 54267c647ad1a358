"""Any sequence of requests, from all sources, leaves what the contract says.

The model below follows the design and docs/data-model.md: which statement counts, which name, and
which transitions are in the change stream. Times in it are minutes before the test began; 0 stands
for the time of arrival.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from app.services import services
from app.store import Tuning
from tests.integration.clock import Clock
from tests.integration.conftest import APP, caller
from tests.integration.store_contents import members, traits, transitions
from tests.support.effort import THOROUGH

COHORTS, USERS = ("1", "2"), ("u1", "u2", "u3", "u4")
WEBHOOK = "/api/v1/integration/amplitude/webhook"
IDENTIFY = "/api/v1/integration/amplitude/cohort"


@dataclass
class CohortModel:
    """One cohort: its name, and the last statement about each user by time and direction."""

    name: str
    named: float
    earlier: set[str] = field(default_factory=set)
    last: dict[str, tuple[float, bool]] = field(default_factory=dict)
    # Partitions that received a time, and those with repeats from before, see the record of order.
    timed: set[int] = field(default_factory=set)
    repeated: set[int] = field(default_factory=set)

    def rename(self, name: str, minute: float) -> None:
        late = name in self.earlier if minute == 0 else minute < self.named
        if name == self.name:
            self.named = max(self.named, minute)
        elif not late:
            self.earlier = (self.earlier | {self.name}) - {name}
            self.name, self.named = name, minute

    def say(self, user: str, partition: int, member: bool, minute: float) -> bool:
        """Whether the user moves."""
        last, is_in = self.last.get(user, (float("-inf"), False))
        in_doubt = minute < 0 and is_in and partition in self.repeated
        moves = False
        if minute >= last and not in_doubt:
            moves = member != is_in
            if member and is_in and minute == 0 and partition not in self.timed:
                self.repeated.add(partition)
            self.last[user] = minute, member
        return moves


class Sequence(RuleBasedStateMachine):
    """Requests and the work of operators, in any order, compared with the model after each."""

    make_app: Callable[..., Any]
    redis_client: redis.Redis
    partitions: int

    @initialize()
    def begin(self) -> None:
        self.redis_client.flushall()
        self.clock = Clock()
        app = self.make_app(Tuning(now=self.clock), store_partitions=self.partitions)
        self.caller, self.store = caller(app), services(app).store
        self.began = int(time.time())  # sources have different precisions
        self.cohorts: dict[str, CohortModel] = {}
        self.deleting: set[str] = set()
        self.suppressed: set[str] = set()
        self.messages: list[tuple[str, dict[str, Any]]] = []
        # Of each partition, the entries of its stream.
        self.entries: dict[int, list[tuple[str, str, set[str]]]] = defaultdict(list)

    # What is said ---------------------------------------------------------------------------------

    def say(
        self, cohort: str, name: str | None, member: bool, users: list[str], minute: float
    ) -> None:
        """Tell the model of a request that was answered 200."""
        users = [user for user in users if user not in self.suppressed]
        if not users or cohort in self.deleting:
            return
        if cohort not in self.cohorts:
            assert name is not None
            self.cohorts[cohort] = CohortModel(name, minute)
        known = self.cohorts[cohort]
        known.rename(name or known.name, minute)
        moved: dict[int, set[str]] = defaultdict(set)
        for user in users:
            partition = self.store.keys.partition(user)
            if known.say(user, partition, member, minute):
                moved[partition].add(user)
        if minute < 0:
            known.timed.update(self.store.keys.partition(user) for user in users)
        for partition, them in moved.items():
            self.entries[partition].append((cohort, "entered" if member else "left", them))

    def post(self, path: str, body: Any, crash: int, *, happened: bool) -> int:
        """Send a request, again if the store failed; returns the last status."""
        if crash >= 0:
            with self.broken(crash, happened):
                reply = self.caller.post(path, json=body)
            if reply.status_code != 503:
                return reply.status_code
        return self.caller.post(path, json=body).status_code

    def broken(self, command: int, happened: bool) -> Any:
        """Fail one command to the store, before it is sent or after it was carried out."""
        return failing(self.store._client, command, happened)

    def can_crash(self, cohort: str) -> bool:
        """A repeat is only told from a first call where repeats are recorded by user."""
        known = self.cohorts.get(cohort)
        return known is not None and known.timed == set(range(self.partitions))

    # Requests -------------------------------------------------------------------------------------

    @rule(
        source=st.sampled_from(["identify", "batch", "webhook", "segment", "list"]),
        cohort=st.sampled_from(COHORTS),
        name=st.sampled_from(["a", "b", "c"]),
        users=st.lists(st.sampled_from(USERS), min_size=1, max_size=4, unique=True),
        member=st.booleans(),
        minute=st.sampled_from([-1, -2, -3, -50]),
        crash=st.integers(-4, 3),
        happened=st.booleans(),
    )
    def request(
        self,
        source: str,
        cohort: str,
        name: str,
        users: list[str],
        member: bool,
        minute: int,
        crash: int,
        happened: bool,
    ) -> None:
        trait = f"[Amplitude] {name}: {cohort}"
        at = self.began + 60 * minute
        stated: str | None = trait
        if source in ("identify", "list", "batch"):
            minute = 0
        if source == "identify":
            users = users[:1]
            path, body = IDENTIFY, identify(users[0], trait, member)
        elif source == "batch":
            path, body = IDENTIFY, {"batch": [identify(user, trait, member) for user in users]}
        elif source == "webhook":
            path = WEBHOOK
            body = {
                "cohort_name": name,
                "cohort_id": cohort,
                "in_cohort": member,
                "computed_time": at,
                "message_id": f"m{len(self.messages)}",
                "users": [{"user_id": user} for user in users],
            }
            if self.is_applied(cohort, users):
                self.messages.append((cohort, body))
        elif source == "segment":
            path = "/v1/batch"
            body = {"batch": [identify(user, trait, member) for user in users]}
            for item in body["batch"]:
                item["timestamp"] = datetime.fromtimestamp(at, UTC).isoformat()
        else:
            path = f"/lists/{cohort}/" + ("add" if member else "remove")
            body, stated = {"userIds": users}, None
        known = cohort in self.cohorts or source != "list"
        status = self.post(path, body, crash if self.can_crash(cohort) else -1, happened=happened)
        refused = cohort in self.deleting
        everybody_suppressed = self.suppressed.issuperset(users)
        if known and not (refused and not everybody_suppressed):
            assert status == 200
        else:
            assert status == 404
        if known:
            self.say(cohort, stated, member, users, minute)
        self.compare(users)

    def is_applied(self, cohort: str, users: list[str]) -> bool:
        return cohort not in self.deleting and not self.suppressed.issuperset(users)

    @rule(number=st.integers(0, 20))
    def repeat_a_message(self, number: int) -> None:
        """A message that was applied does nothing, whatever has happened since."""
        if self.messages:
            _, body = self.messages[number % len(self.messages)]
            assert self.caller.post(WEBHOOK, json=body).status_code == 200
            self.compare(list(USERS))

    # Operators and background work ----------------------------------------------------------------

    @rule(user=st.sampled_from(USERS), suppress=st.booleans())
    def erase(self, user: str, suppress: bool) -> None:
        self.store.erasure.erase(APP, user, suppress=suppress)
        for known in self.cohorts.values():
            known.last.pop(user, None)
        if suppress:
            self.suppressed.add(user)
        partition = self.store.keys.partition(user)
        self.entries[partition] = [one for one in self.entries[partition] if one[2] != {user}]
        self.compare([user])

    @rule(cohort=st.sampled_from(COHORTS))
    def begin_deletion(self, cohort: str) -> None:
        if self.store.jobs.begin_deletion(APP, cohort):
            self.deleting.add(cohort)

    @rule(days=st.integers(-2, 2))
    def set_the_clock_of_the_worker(self, days: int) -> None:
        self.clock.ahead = days * 86400.0

    @rule()
    def work(self) -> None:
        """Background work, until nothing is left."""
        for _ in range(50):
            if not (jobs := self.store.jobs.pending()):
                break
            for job in jobs:
                self.store.jobs.step(job)
        assert not self.store.jobs.pending()
        for cohort in self.deleting:
            leaving: dict[int, set[str]] = defaultdict(set)
            for user, (_, is_in) in self.cohorts.pop(cohort).last.items():
                if is_in:
                    leaving[self.store.keys.partition(user)].add(user)
            for partition, them in leaving.items():
                self.entries[partition].append((cohort, "left", them))
        self.deleting.clear()
        self.compare(list(USERS))
        self.compare_names()

    # Comparing ------------------------------------------------------------------------------------

    def compare(self, users: list[str]) -> None:
        """The store with the model, but for cohorts that are being deleted."""
        if self.deleting:
            return
        found = members(self.redis_client, APP)
        fields = traits(self.redis_client, APP)
        for cohort, known in self.cohorts.items():
            expected = {user for user, (_, is_in) in known.last.items() if is_in}
            assert found.get(cohort, set()) == expected
            for user in users:
                values = [
                    value
                    for trait, value in fields.get(user, {}).items()
                    if trait.endswith(f": {cohort}")
                ]
                _, is_in = known.last.get(user, (0, None))
                assert values == ([] if is_in is None else [str(is_in).lower()])
        told, expected_told = defaultdict(list), defaultdict(list)
        for one in transitions(self.redis_client, APP):
            told[one.cohort, one.user].append(one.change)
        for entries in self.entries.values():
            for cohort, change, them in entries:
                for user in them:
                    expected_told[cohort, user].append(change)
        assert told == expected_told

    def compare_names(self) -> None:
        """Once no user is left with an earlier name."""
        names = {c.id: c.trait for c in self.store.registry.all(APP)}
        if self.partitions == 1:
            assert names == {cohort: known.name for cohort, known in self.cohorts.items()}
        for fields in traits(self.redis_client, APP).values():
            assert set(fields) <= set(names.values())

    def teardown(self) -> None:
        if hasattr(self, "store"):
            try:
                self.work()
            finally:
                self.store._client.close()


def identify(user: str, trait: str, member: bool) -> dict[str, Any]:
    return {"type": "identify", "userId": user, "traits": {trait: member}}


class failing:
    """Fail one command that writes through a client: before it is sent, or after its effect."""

    def __init__(self, client: Any, command: int, happened: bool) -> None:
        self._client, self._left, self._happened = client, command, happened

    def __enter__(self) -> None:
        original = self._client.write

        def write(*args: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left != -1:
                return original(*args, **options)
            if self._happened:
                original(*args, **options)
            raise redis.ConnectionError("The store is away.")

        self._client.write = write

    def __exit__(self, *error: object) -> None:
        del self._client.write


@pytest.mark.parametrize("partitions", [1, 2])
def test_any_sequence__leaves_what_the_contract_says(
    partitions: int, make_app: Callable[..., Any], redis_client: redis.Redis
) -> None:
    class Here(Sequence):
        pass

    Here.make_app = staticmethod(make_app)
    Here.redis_client = redis_client
    Here.partitions = partitions
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=300 if THOROUGH else 15,
            stateful_step_count=40 if THOROUGH else 30,
            suppress_health_check=list(HealthCheck),
            deadline=None,
        ),
    )
