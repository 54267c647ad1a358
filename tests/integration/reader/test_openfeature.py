"""The OpenFeature provider, through the real SDK."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import EventDetails, ProviderEvent
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import FlagEvaluationDetails, Reason
from openfeature.provider import ProviderStatus

from cohort_reader import AsyncCohortReader, CohortReader
from cohort_reader.openfeature import CohortProvider
from cohort_reader.testing import InMemoryAsyncCohortReader, InMemoryCohortReader, InMemoryCohorts
from tests.integration.conftest import APP
from tests.integration.reader.blocking import Loop
from tests.integration.reader.conftest import COHORT, Clients, Service
from tests.support.polling import wait_until

ALICE, BOB = EvaluationContext("alice"), EvaluationContext("bob")

Evaluate = Callable[..., FlagEvaluationDetails[Any]]


@pytest.fixture
def client() -> Iterator[OpenFeatureClient]:
    yield api.get_client("cohorts")
    api.clear_providers()  # shuts them down


@pytest.fixture
def evaluate(client: OpenFeatureClient, loop: Loop | None) -> Evaluate:
    """Evaluate a flag of any type as the test's kind does: blocking, or with ``…_async``."""

    def evaluate(
        flag: str, default: Any, context: EvaluationContext | None = None, type: str = "boolean"
    ) -> FlagEvaluationDetails[Any]:
        if loop is None:
            return getattr(client, f"get_{type}_details")(flag, default, context)
        return loop.run(getattr(client, f"get_{type}_details_async")(flag, default, context))

    return evaluate


def provide(reader: CohortReader | AsyncCohortReader) -> CohortProvider:
    provider = CohortProvider(reader)
    api.set_provider(provider, "cohorts")
    return provider


@pytest.fixture
def provided(service: Service, connect_client: Clients, loop: Loop | None) -> Service:
    """A service whose store the provider reads."""
    options: dict[str, Any] = {"app": APP}
    client = connect_client()
    provide(
        CohortReader(client, **options)
        if loop is None
        else loop.make(lambda: AsyncCohortReader(client, **options))
    )
    return service


def test_flag__is_on_for_the_members_of_the_cohort(provided: Service, evaluate: Evaluate) -> None:
    provided.push_webhook("alice", computed_time=1_700_000_000)
    found = evaluate(COHORT, False, ALICE)
    assert (found.value, found.reason, found.variant) == (True, Reason.TARGETING_MATCH, "member")
    assert found.flag_metadata == {"ageSeconds": 0.0, "sinceMs": 1_700_000_000_000}
    found = evaluate(COHORT, True, BOB)
    assert (found.value, found.reason, found.variant) == (False, Reason.DEFAULT, "not-member")
    assert found.error_code is None


def test_flag__of_a_cohort_never_received__is_not_found(
    provided: Service, evaluate: Evaluate
) -> None:
    provided.push("alice")
    for default in (True, False):
        found = evaluate("typo", default, ALICE)
        assert (found.value, found.reason) == (default, Reason.ERROR)
        assert found.error_code is ErrorCode.FLAG_NOT_FOUND
        assert found.error_message == "the cohort 'typo' is not in the store"


def test_flag__without_a_user__misses_its_targeting_key(
    provided: Service, evaluate: Evaluate
) -> None:
    for context in (None, EvaluationContext(), EvaluationContext("")):
        found = evaluate(COHORT, True, context)
        assert (found.value, found.error_code) == (True, ErrorCode.TARGETING_KEY_MISSING)


@pytest.mark.parametrize(
    ("type", "default"), [("string", "x"), ("integer", 1), ("float", 1.5), ("object", {"a": 1})]
)
def test_flag__of_another_type__is_a_mismatch(
    provided: Service, evaluate: Evaluate, type: str, default: object
) -> None:
    found = evaluate(COHORT, default, ALICE, type)
    assert (found.value, found.error_code) == (default, ErrorCode.TYPE_MISMATCH)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_store_that_is_away__shows_in_reasons_errors_and_events(
    client: OpenFeatureClient, evaluate: Evaluate, loop: Loop | None
) -> None:
    cohorts, clock = InMemoryCohorts({COHORT: ["alice"]}), Clock()
    options: dict[str, Any] = {
        "cache_entries": 9,
        "cache_seconds": 5,
        "stale_seconds": 60,
        "clock": clock,
    }
    provide(
        InMemoryCohortReader(cohorts, **options)
        if loop is None
        else loop.make(lambda: InMemoryAsyncCohortReader(cohorts, **options))
    )
    events: list[tuple[ProviderEvent, str | None]] = []
    for event in ProviderEvent:

        def note(details: EventDetails, event: ProviderEvent = event) -> None:
            events.append((event, details.message))

        client.add_handler(event, note)
    wait_until(lambda: events == [(ProviderEvent.PROVIDER_READY, None)])  # the handler's own
    events.clear()

    assert evaluate(COHORT, False, ALICE).reason is Reason.TARGETING_MATCH
    clock.now += 1
    found = evaluate(COHORT, False, ALICE)
    assert (found.value, found.reason) == (True, Reason.CACHED)
    assert found.flag_metadata["ageSeconds"] == 1.0

    cohorts.is_available = False
    clock.now += 10
    found = evaluate(COHORT, False, ALICE)
    assert (found.value, found.reason) == (True, Reason.STALE)
    found = evaluate(COHORT, True, BOB)
    assert (found.value, found.error_code) == (True, ErrorCode.GENERAL)
    assert client.get_provider_status() is ProviderStatus.ERROR
    evaluate(COHORT, True, BOB)

    cohorts.is_available = True
    assert evaluate(COHORT, True, BOB).value is False
    assert client.get_provider_status() is ProviderStatus.READY
    wait_until(lambda: len(events) == 3)
    assert {event for event, _ in events} == {  # handlers run in threads: in any order
        ProviderEvent.PROVIDER_STALE,
        ProviderEvent.PROVIDER_ERROR,
        ProviderEvent.PROVIDER_READY,
    }


def test_provider__is_ready_again_once_the_store_itself_answers(
    client: OpenFeatureClient, evaluate: Evaluate, loop: Loop | None
) -> None:
    cohorts, clock = InMemoryCohorts({COHORT: ["alice"]}), Clock()
    options: dict[str, Any] = {"cache_entries": 9, "cache_seconds": 5, "clock": clock}
    provide(
        InMemoryCohortReader(cohorts, **options)
        if loop is None
        else loop.make(lambda: InMemoryAsyncCohortReader(cohorts, **options))
    )
    evaluate(COHORT, False, ALICE)
    clock.now += 1
    cohorts.is_available = False
    evaluate(COHORT, False, BOB)
    assert evaluate(COHORT, False, ALICE).reason is Reason.CACHED
    assert client.get_provider_status() is ProviderStatus.ERROR

    cohorts.is_available = True
    assert evaluate("other", False, ALICE).error_code is ErrorCode.FLAG_NOT_FOUND
    assert client.get_provider_status() is ProviderStatus.READY


def test_blocking_reader__serves_asynchronous_evaluations_too(client: OpenFeatureClient) -> None:
    provide(InMemoryCohortReader(InMemoryCohorts({COHORT: ["alice"]})))
    assert asyncio.run(client.get_boolean_value_async(COHORT, False, ALICE))


def test_asynchronous_reader__says_why_it_serves_no_blocking_evaluations(
    client: OpenFeatureClient,
) -> None:
    provide(InMemoryAsyncCohortReader(InMemoryCohorts({COHORT: ["alice"]})))
    found = client.get_boolean_details(COHORT, False, ALICE)
    assert (found.value, found.error_code) == (False, ErrorCode.GENERAL)
    assert "only with get_…_async" in str(found.error_message)
