"""Each source keeps the contract."""

from __future__ import annotations

from collections.abc import Sequence

from flask.testing import FlaskClient

from simulator import payloads
from tests.integration.web.ingest.contract import COHORT, TRAIT, CohortContract


class TestBatch(CohortContract):
    source = "identify"

    def send(self, http: FlaskClient, user_ids: Sequence[str], member: bool) -> int:
        reply = http.post(payloads.COHORT_PATH, json=payloads.batch(user_ids, TRAIT, member))
        assert (reply.status_code, reply.json["accepted"]) == (200, len(user_ids))
        return reply.json["changed"]


class TestSingleIdentify(CohortContract):
    source = "identify"
    many = 100

    def send(self, http: FlaskClient, user_ids: Sequence[str], member: bool) -> int:
        changed = 0
        for user_id in user_ids:
            reply = http.post(payloads.COHORT_PATH, json=payloads.identify(user_id, TRAIT, member))
            assert (reply.status_code, reply.json["accepted"]) == (200, 1)
            changed += reply.json["changed"]
        return changed


class TestList(CohortContract):
    source = "list"

    def send(self, http: FlaskClient, user_ids: Sequence[str], member: bool) -> int:
        created = http.post("/lists", json=payloads.list_create(TRAIT))
        assert (created.status_code, created.json["listId"]) == (200, COHORT)
        path = f"/lists/{COHORT}/{'add' if member else 'remove'}"
        reply = http.post(path, json=payloads.list_users(user_ids))
        assert (reply.status_code, reply.json["accepted"]) == (200, len(user_ids))
        return reply.json["changed"]


class TestBatchAtListRemove(CohortContract):
    source = "identify"

    def send(self, http: FlaskClient, user_ids: Sequence[str], member: bool) -> int:
        body = payloads.batch(user_ids, TRAIT, member)
        reply = http.post("/lists/$listId/remove", json=body)
        assert (reply.status_code, reply.json["accepted"]) == (200, len(user_ids))
        return reply.json["changed"]
