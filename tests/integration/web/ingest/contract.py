"""What every source guarantees: the same facts leave the same state in the store.

Each source has at least one subclass, in a test module of this folder, that can say one thing:
these users are, or are not, in this cohort.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.cohorts import Rejection, user_hash
from app.services import services
from simulator import payloads
from tests.integration.conftest import APP, caller
from tests.integration.store_contents import Transition, contents, members, traits, transitions
from tests.support.effort import PARTITIONS

NAME, COHORT = "Power: users", "abc123"
TRAIT = payloads.trait_name(NAME, COHORT)
MISSING = "(no such member)"
BAD_IDS = [
    *(MISSING, None, "", " ", "\t\r\n", "\u00a0\u3000", "a\0b", "x" * 1025, "é" * 513),
    *(1.0, 1.5, -0.0, 1e22, 2**53 + 1, -(2**53) - 1, True, False, [], ["a"], {}, {"userId": "a"}),
]


def without_missing(body: Any) -> Any:
    """JSON without the members that are :data:`MISSING`."""
    if isinstance(body, dict):
        return {name: without_missing(v) for name, v in body.items() if v != MISSING}
    return [without_missing(v) for v in body] if isinstance(body, list) else body


class CohortContract:
    """What every source guarantees.

    Attributes:
        source: the name of the source.
        place: the place of a user in the body, by the number of the user.
        bad_ids: ids that are not usable.
    """

    source: str
    place: str
    bad_ids: Sequence[Any] = BAD_IDS

    many = 2500  # users, more than one call to the store takes

    @pytest.fixture(autouse=True, params=PARTITIONS)
    def service(
        self,
        request: pytest.FixtureRequest,
        make_app: Callable[..., Flask],
        redis_client: redis.Redis,
    ) -> None:
        self.make_app = lambda **settings: make_app(store_partitions=request.param, **settings)
        self.app = self.make_app()
        self.http = caller(self.app)
        self.redis = redis_client

    @abstractmethod
    def request(self, http: FlaskClient, user_ids: Sequence[Any], member: bool) -> TestResponse:
        """Say it in one request. Ids may be any JSON, or :data:`MISSING`."""

    def portions(self, user_ids: Sequence[Any]) -> list[Sequence[Any]]:
        """The users of each request."""
        return [[user_id] for user_id in user_ids]

    def say(self, user_ids: Sequence[str], member: bool) -> int:
        """Say it, check that the reply is 200, and return how many users changed."""
        changed = 0
        for users in self.portions(user_ids):
            reply = self.request(self.http, users, member)
            assert (reply.status_code, reply.json["accepted"]) == (200, len(users))
            assert (reply.json["rejected"], reply.json["errors"]) == (0, [])
            changed += reply.json["changed"]
        return changed

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

    def test_bad_ids__and_no_others__are_404_and_write_nothing(self) -> None:
        self.say(["a"], True)
        before = self.stored()
        for bad in self.portions(self.bad_ids):
            reply = self.request(self.http, bad, False)
            assert (reply.status_code, reply.json["reason"]) == (404, "invalid_user_id"), bad
            assert "Invalid User ID" in reply.json["detail"]
            places = [self.place.format(n) for n in range(len(bad))]
            assert [e["place"] for e in reply.json["errors"]] == places
        assert self.stored() == before

    def stored(self) -> dict[str, Any]:
        """Everything but when cohorts and lists arrived."""
        keys = [key for key in self.redis.keys("cohorts:{shop*") if not key.endswith(":state")]
        return {key: self.redis.dump(key) for key in keys}

    def test_whole_numbers__are_ids__as_their_digits(self) -> None:
        self.say([0, 7, 2**53, -5], True)  # type: ignore[list-item]
        expected = {"0", "7", "9007199254740992", "-5"}
        assert members(self.redis, APP) == {COHORT: expected}
        assert {t.user for t in transitions(self.redis, APP)} == expected
        assert self.say(["7"], True) == 0
        assert self.say(["7"], False) == 1
        assert traits(self.redis, APP)["7"] == {TRAIT: "false"}


class BatchContract(CohortContract):
    """What every source guarantees whose requests can name several users."""

    def portions(self, user_ids: Sequence[Any]) -> list[Sequence[Any]]:
        return [user_ids]

    def test_bad_ids__among_others__cost_only_their_users(self) -> None:
        sent: list[Any] = ["first"]
        for number, bad in enumerate(self.bad_ids):
            sent += [bad, f"user{number}"]
        bad_places = [self.place.format(2 * n + 1) for n in range(len(self.bad_ids))]
        good = {"first", *(f"user{n}" for n in range(len(self.bad_ids)))}
        for member in (True, False):
            for changed in (len(good), 0):
                reply = self.request(self.http, sent, member)
                assert reply.status_code == 200, reply.json
                assert (reply.json["accepted"], reply.json["changed"]) == (len(good), changed)
                assert reply.json["rejected"] == len(self.bad_ids)
                assert [e["place"] for e in reply.json["errors"]] == bad_places
                assert {e["reason"] for e in reply.json["errors"]} == {"invalid_user_id"}
            assert traits(self.redis, APP) == {user: {TRAIT: str(member).lower()} for user in good}
            assert members(self.redis, APP) == ({COHORT: good} if member else {})

    def test_bad_ids__are_in_the_sync_history(self) -> None:
        self.request(self.http, [*self.bad_ids, "a"], True)
        parts = services(self.app)
        parts.sync_recorder.flush()
        (sync,) = parts.store.sync_history.syncs(APP, cohort_id=COHORT).syncs
        assert (sync.accepted, sync.rejected) == (1, len(self.bad_ids))
        assert sync.reasons == {"invalid_user_id": len(self.bad_ids)}
        (record,) = parts.store.sync_history.requests(APP, sync.id, problems=True)
        assert record.rejections == (Rejection("", "invalid_user_id"),)

    def test_members__who_are_not_registered__stay_until_they_leave(self) -> None:
        """They entered when everybody was accepted, or were registered then."""
        assert self.request(caller(self.make_app()), ["a", "b"], True).status_code == 200
        http = caller(self.make_app(user_policy="known"))
        assert self.request(http, ["a", "b"], True).json["rejected"] == 0
        reply = self.request(http, ["a", "stranger"], False)
        assert reply.status_code == 200
        assert [e["reason"] for e in reply.json["errors"]] == ["unknown_user"]
        assert members(self.redis, APP) == {COHORT: {"b"}}
        assert self.request(http, ["a"], False).json["reason"] == "unknown_user"

    def test_bad_ids__among_unknown_and_suppressed_users__have_a_reason_of_their_own(self) -> None:
        app = self.make_app(user_policy="known")
        store = services(app).store
        store.registered_users.add(APP, ["a", "erased"])
        store.erasure.erase(APP, "erased", suppress=True)
        reply = self.request(caller(app), ["stranger", None, "a", "erased", " "], True)
        assert reply.status_code == 200
        assert [(e["place"], e["reason"]) for e in reply.json["errors"]] == [
            (self.place.format(0), "unknown_user"),
            (self.place.format(1), "invalid_user_id"),
            (self.place.format(3), "suppressed_user"),
            (self.place.format(4), "invalid_user_id"),
        ]
        assert members(self.redis, APP) == {COHORT: {"a"}}
        nobody = self.request(caller(app), ["erased", None, "stranger"], True)
        assert (nobody.status_code, nobody.json["reason"]) == (404, "invalid_user_id")
        services(app).sync_recorder.flush()
        (sync,) = store.sync_history.syncs(APP, cohort_id=COHORT).syncs
        assert sync.reasons == {"invalid_user_id": 3, "unknown_user": 2, "suppressed_user": 2}
        accepted, refused = store.sync_history.requests(APP, sync.id, problems=True)
        assert set(accepted.rejections) == {
            Rejection(user_hash("stranger"), "unknown_user"),
            Rejection(user_hash("erased"), "suppressed_user"),
            Rejection("", "invalid_user_id"),
        }
        assert refused.detail.startswith(self.place.format(1) + ": Invalid User ID")
