"""Whatever the service does in several commands: killed between any two, a repeat completes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from app.cohorts import Cohort, MembershipChange
from app.server.background import Background
from app.settings import Settings
from app.store import Store, connect
from tests.integration.killed_process import KilledError, killed_at
from tests.integration.store_contents import members, traits, transitions
from tests.support.effort import PARTITIONS, THOROUGH

APP = "shop"
ONE, TWO, NEW = "[Amplitude] one: 1", "[Amplitude] two: 2", "[Amplitude] new: 1"
USERS = [f"u{n}" for n in range(30)]


def say(store: Store, trait: str, member: bool, *users: str) -> None:
    change = MembershipChange(Cohort.from_trait(trait), member, list(users))
    store.memberships.apply(APP, [change], source="test")


def delete(store: Store) -> None:
    store.jobs.begin_deletion(APP, "1")
    finish(store)


def rename(store: Store) -> None:
    say(store, NEW, True, "u0")
    finish(store)


def finish(store: Store) -> None:
    for _ in range(20):
        if not store.jobs.pending():
            return
        Background(store).work()


WORK: dict[str, Callable[[Store], Any]] = {
    "apply": lambda store: say(store, TWO, True, *USERS),
    "register_cohort": lambda store: store.memberships.register_cohort(
        APP, Cohort("9", "n: 9"), source="list"
    ),
    "register_users": lambda store: store.registered_users.add(APP, USERS),
    "erase": lambda store: store.erasure.erase(APP, "u1", suppress=True),
    "delete": delete,
    "rename": rename,
    "note sizes": lambda store: store.size_history.record(APP, ["1", "2"]),
}


class Trial:
    """The same work on the same data, again and again."""

    def __init__(self, url: str, client: redis.Redis, partitions: int) -> None:
        self._settings = Settings(redis_url=url)
        self._client = client
        self._partitions = partitions

    def store(self, killed: int | None = None) -> Store:
        """The store as a new process has it; killed at this command, if at any."""
        client = connect(self._settings)
        if killed is not None:
            killed_at(client, killed)
        return Store(client, partitions=self._partitions)

    def begin(self) -> None:
        self._client.flushall()
        store = self.store()
        say(store, ONE, True, *USERS)
        say(store, TWO, True, *USERS[:10])
        say(store, TWO, False, "u3")

    def let_leases_end(self) -> None:
        """A process that was killed keeps its job for some seconds, then it is another's."""
        for lease in self._client.scan_iter(match="*:lease"):
            self._client.delete(lease)

    def state(self) -> dict[str, Any]:
        store = self.store()
        return {
            "traits": traits(self._client, APP),
            "members": members(self._client, APP),
            "transitions": sorted(transitions(self._client, APP)),
            "cohorts": {c.id: (c.trait, c.members) for c in store.registry.all(APP)},
            "jobs": store.jobs.pending(),
        }


@pytest.mark.parametrize("partitions", PARTITIONS)
@pytest.mark.parametrize("name", WORK)
def test_work__killed_between_any_two_commands__is_whole_after_a_repeat(
    store_url: str, redis_client: redis.Redis, name: str, partitions: int
) -> None:
    trial, work = Trial(store_url, redis_client, partitions), WORK[name]
    trial.begin()
    work(trial.store())
    wanted = trial.state()
    for command in range(0, 1000, 1 if THOROUGH else 3):
        trial.begin()
        try:
            work(trial.store(killed=command))
        except KilledError:
            assert trial.store().checker.run([APP]).ok, command
        else:
            break
        trial.let_leases_end()
        work(trial.store())
        assert trial.state() == wanted, command
        assert trial.store().checker.run([APP]).ok, command
    assert command > 1
