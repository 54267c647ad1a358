"""What every source guarantees: the same facts leave the same state in the store.

Each source has at least one subclass, in a test module of this folder, that can say one thing:
these users are, or are not, in this cohort.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient

from app.services import services
from simulator import payloads
from tests.integration.conftest import APP, caller
from tests.integration.store_contents import Transition, contents, members, traits, transitions

NAME, COHORT = "Power: users", "abc123"
TRAIT = payloads.trait_name(NAME, COHORT)


class CohortContract:
    """What every source guarantees.

    Attributes:
        source: the name of the source.
    """

    source: str

    many = 2500  # users, more than one call to the store takes

    @pytest.fixture(autouse=True, params=[1, 3], ids=["one partition", "three partitions"])
    def service(
        self,
        request: pytest.FixtureRequest,
        make_app: Callable[..., Flask],
        redis_client: redis.Redis,
    ) -> None:
        self.app = make_app(store_partitions=request.param)
        self.http = caller(self.app)
        self.redis = redis_client

    @abstractmethod
    def send(self, http: FlaskClient, user_ids: Sequence[str], member: bool) -> int:
        """Say it, see that it is answered with 200, and return how many users changed."""

    def say(self, user_ids: Sequence[str], member: bool) -> int:
        return self.send(self.http, user_ids, member)

    def test_true__of_new_users__writes_hash_set_and_stream(self) -> None:
        assert self.say(["a", "b"], True) == 2
        assert traits(self.redis, APP) == {"a": {TRAIT: "true"}, "b": {TRAIT: "true"}}
        assert members(self.redis, APP) == {COHORT: {"a", "b"}}
        assert set(transitions(self.redis, APP)) == {
            Transition(COHORT, "entered", "a"),
            Transition(COHORT, "entered", "b"),
        }

    def test_request__of_a_source__is_recorded_under_its_name(self) -> None:
        self.say(["a"], True)
        parts = services(self.app)
        record = parts.store.registry.find(APP, COHORT)
        assert record is not None
        assert set(record.sources) == {self.source}
        parts.sync_recorder.flush()
        (sync,) = parts.store.sync_history.syncs(APP).syncs
        assert set(sync.sources) == {self.source}

    def test_false__of_members__keeps_the_field_at_false(self) -> None:
        self.say(["a", "b"], True)
        assert self.say(["b"], False) == 1
        assert traits(self.redis, APP) == {"a": {TRAIT: "true"}, "b": {TRAIT: "false"}}
        assert members(self.redis, APP) == {COHORT: {"a"}}
        told = transitions(self.redis, APP)
        assert [t for t in told if t.user == "b"] == [
            Transition(COHORT, "entered", "b"),
            Transition(COHORT, "left", "b"),
        ]

    def test_false__of_users_never_in__sets_the_field_and_tells_nobody(self) -> None:
        assert self.say(["a"], False) == 1
        assert traits(self.redis, APP) == {"a": {TRAIT: "false"}}
        assert members(self.redis, APP) == {}
        assert transitions(self.redis, APP) == []

    @pytest.mark.parametrize("member", [True, False])
    def test_repeat__any_number_of_times__changes_nothing(self, member: bool) -> None:
        self.say(["a", "b"], True)
        self.say(["a"], member)
        before = contents(self.redis)
        for _ in range(3):
            assert self.say(["a"], member) == 0
        assert contents(self.redis) == before

    def test_back_and_forth__each_transition__is_told_once(self) -> None:
        for member in (True, False, True, False):
            self.say(["a"], member)
        assert [t.change for t in transitions(self.redis, APP)] == [
            "entered",
            "left",
            "entered",
            "left",
        ]

    def test_user_ids__of_every_kind__are_kept_as_they_are(self) -> None:
        ids = [
            "a@b.c",
            "a/b",
            "a b",
            "é",
            "🎉",
            "a{b}",
            "*",
            "a:b",
            "'\"\\",
            "line\nbreak",
            "x" * 1024,
        ]
        self.say(ids, True)
        assert set(traits(self.redis, APP)) == set(ids)
        assert members(self.redis, APP) == {COHORT: set(ids)}
        assert {t.user for t in transitions(self.redis, APP)} == set(ids)

    def test_many_users__more_than_one_call_takes__all_arrive(self) -> None:
        ids = payloads.user_ids(self.many)
        assert self.say(ids, True) == self.many
        assert members(self.redis, APP) == {COHORT: set(ids)}
        assert len(transitions(self.redis, APP)) == self.many
