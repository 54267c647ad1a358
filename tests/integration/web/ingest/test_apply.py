"""The step that all sources share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from flask import Flask, g

from app.auth.keyring import Caller
from app.cohorts import Identify
from app.errors import InvalidPayload, InvalidUserId, UnknownUser
from app.services import services
from app.web.ingest import apply as module
from app.web.ingest.apply import Result, Skipped
from tests.integration.conftest import APP

TRAIT = "[Amplitude] Power users: abc123"


def apply(calls: Sequence[Identify]) -> Result:
    return module.apply(calls, source="test", user_place="users.{}".format)


@contextmanager
def request_to(app: Flask) -> Iterator[None]:
    """A request to the service, as a source's view receives it."""
    with app.test_request_context():
        g.event, g.caller = {}, Caller(APP, "ingest", "a-key")
        yield


def test_apply__of_more_users_than_the_limit__is_refused_whatever_lists_they_came_in(
    make_app: Callable[..., Flask],
) -> None:
    calls = [Identify(user, {TRAIT: True}) for user in "abcd"]
    with request_to(make_app(max_batch_users=3)):
        assert apply(calls[:3]) == Result(3, 3, 0, [])
        with pytest.raises(InvalidPayload) as caught:
            apply(calls)
    assert "at most 3 users" in caught.value.errors[0]["message"]  # type: ignore[index]


def test_apply__with_some_users_unknown__returns_which_calls_were_skipped_and_why(
    make_app: Callable[..., Flask],
) -> None:
    app = make_app(user_policy="known")
    services(app).store.registered_users.add(APP, ["known"])
    calls = [Identify("stranger", {TRAIT: True}), Identify("known", {TRAIT: True})]
    with request_to(app):
        assert apply(calls) == Result(1, 1, 1, [Skipped("users.0", UnknownUser)])
        with pytest.raises(UnknownUser):
            apply(calls[:1])


def test_apply__of_cohorts_that_only_calls_without_a_user_name__leaves_them_alone(
    make_app: Callable[..., Flask],
) -> None:
    app = make_app()
    calls = [
        Identify("a", {TRAIT: True}),
        Identify("", {TRAIT: False, "other: x1": True, "renamed: abc123": True}),
    ]
    with request_to(app):
        assert apply(calls) == Result(1, 1, 1, [Skipped("users.1", InvalidUserId)])
        # The sync history says of both cohorts that a user of theirs was left out.
        assert g.outcome.traits == {"abc123": TRAIT, "x1": "other: x1"}
        assert g.event["rejected_by"] == {"invalid_user_id": 1}
    registry = services(app).store.registry
    assert registry.find(APP, "x1") is None
    record = registry.find(APP, "abc123")
    assert record is not None
    assert (record.trait, record.members) == (TRAIT, 1)
