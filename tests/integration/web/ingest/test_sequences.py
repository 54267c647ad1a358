"""Any sequence of requests, with any repeated, leaves what the last statement says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator import payloads
from tests.integration.conftest import APP, caller
from tests.integration.store_contents import Transition, members, traits, transitions
from tests.support.effort import THOROUGH

users = st.sampled_from(["u1", "u2", "u3"])
names = st.sampled_from(["[Amplitude] one: 1", "[Amplitude] two: 2", "no id"])
calls = st.builds(
    lambda user, said: {"type": "identify", "userId": user, "traits": said},
    users,
    st.dictionaries(names, st.booleans(), min_size=1),
)
requests = st.lists(
    st.tuples(st.one_of(calls, st.lists(calls, max_size=5)), st.integers(1, 3)), max_size=8
)


@pytest.mark.parametrize("partitions", [1, 2])
@settings(
    max_examples=200 if THOROUGH else 20,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(sequence=requests)
def test_any_sequence__with_repeats__ends_as_last_said_and_tells_each_transition_once(
    sequence: list, partitions: int, make_app: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    redis_client.flushall()
    http = caller(make_app(store_partitions=partitions))
    said: dict[tuple[str, str], bool] = {}
    expected: list[Transition] = []
    for request, times in sequence:
        batch = request if isinstance(request, list) else [request]
        last: dict[tuple[str, str], bool] = {}
        for call in batch:
            last.update({(call["userId"], trait): v for trait, v in call["traits"].items()})
        for (user, trait), member in last.items():
            if member != said.get((user, trait), False):
                expected.append(Transition(trait, "entered" if member else "left", user))
            said[user, trait] = member
        for _ in range(times):
            body = {"batch": request} if isinstance(request, list) else request
            assert http.post(payloads.COHORT_PATH, json=body).status_code == 200

    hashes: dict[str, dict[str, str]] = {}
    for (user, trait), member in said.items():
        hashes.setdefault(user, {})[trait] = "true" if member else "false"
    assert traits(redis_client, APP) == hashes

    sets: dict[str, set[str]] = {}
    for (user, trait), member in said.items():
        if member:
            sets.setdefault(cohort_id(trait), set()).add(user)
    assert members(redis_client, APP) == sets

    # Streams of two partitions have no order between them; one user's transitions have.
    told = transitions(redis_client, APP)
    assert sorted(told) == sorted(t._replace(cohort=cohort_id(t.cohort)) for t in expected)
    for user in ("u1", "u2", "u3"):
        for trait in {t.cohort for t in expected}:
            assert [t.change for t in told if t[::2] == (cohort_id(trait), user)] == [
                t.change for t in expected if t[::2] == (trait, user)
            ]


def cohort_id(trait: str) -> str:
    if trait == "no id":
        return "name-745677f0e14bf1bdd94d58d8"  # printf 'no id' | sha256sum | cut -c -24
    return trait.rpartition(": ")[2]
