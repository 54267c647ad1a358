"""Each source keeps the contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from simulator import payloads
from tests.integration.web.ingest.contract import (
    BAD_IDS,
    COHORT,
    MISSING,
    TRAIT,
    BatchContract,
    CohortContract,
    without_missing,
)


class TestBatch(BatchContract):
    source, place = "identify", "batch.{}.userId"

    def request(self, http: FlaskClient, user_ids: Sequence[Any], member: bool) -> TestResponse:
        body = payloads.batch(user_ids, TRAIT, member)
        return http.post(payloads.COHORT_PATH, json=without_missing(body))


class TestBatchWithFurtherFields(BatchContract):
    """Not of the form that is parsed in one pass."""

    source, place = "identify", "batch.{}.userId"

    def request(self, http: FlaskClient, user_ids: Sequence[Any], member: bool) -> TestResponse:
        body = {**payloads.batch(user_ids, TRAIT, member), "sentAt": "now"}
        return http.post(payloads.COHORT_PATH, json=without_missing(body))


class TestSingleIdentify(CohortContract):
    source, place = "identify", "userId"
    many = 100

    def request(self, http: FlaskClient, user_ids: Sequence[Any], member: bool) -> TestResponse:
        (user_id,) = user_ids
        body = payloads.identify(user_id, TRAIT, member)
        return http.post(payloads.COHORT_PATH, json=without_missing(body))


class TestList(BatchContract):
    source, place = "list", "userIds.{}"
    bad_ids = [bad for bad in BAD_IDS if bad != MISSING]  # noqa: RUF012

    def request(self, http: FlaskClient, user_ids: Sequence[Any], member: bool) -> TestResponse:
        created = http.post("/lists", json=payloads.list_create(TRAIT))
        assert (created.status_code, created.json["listId"]) == (200, COHORT)
        path = f"/lists/{COHORT}/{'add' if member else 'remove'}"
        return http.post(path, json=payloads.list_users(user_ids))


class TestBatchAtListRemove(BatchContract):
    source, place = "identify", "batch.{}.userId"

    def request(self, http: FlaskClient, user_ids: Sequence[Any], member: bool) -> TestResponse:
        body = payloads.batch(user_ids, TRAIT, member)
        return http.post("/lists/$listId/remove", json=without_missing(body))
