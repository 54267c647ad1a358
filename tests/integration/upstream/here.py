"""The service, and Amplitude's API for its app."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from flask import Flask

from app.cohorts import Completeness, FreshnessState, IncompleteReason
from app.services import Services, services
from simulator.upstream import ServedCohort, Upstream
from tests.integration.conftest import APP, caller

COHORT_PATH = "/api/v1/integration/amplitude/cohort"


class Here:
    """The service, and Amplitude's API for its app."""

    def __init__(self, app: Flask, server: Upstream) -> None:
        self.app = app
        self.server = server
        self.http = caller(app)

    @property
    def parts(self) -> Services:
        return services(self.app)

    def send(self, cohort_id: str, users: int | Iterable[str], *, member: bool = True) -> None:
        """Sync users, or as many made-up ones."""
        ids = [f"user{n}" for n in range(users)] if isinstance(users, int) else users
        traits = {f"[Amplitude] A cohort: {cohort_id}": member}
        batch = [{"type": "identify", "userId": user_id, "traits": traits} for user_id in ids]
        assert self.http.post(COHORT_PATH, json={"batch": batch}).status_code == 200

    def serve(self, cohort_id: str, **changes: Any) -> ServedCohort:
        cohort = ServedCohort(cohort_id, "A cohort", **changes)
        self.server.cohorts[cohort_id] = cohort
        return cohort

    def poll(self) -> None:
        assert self.parts.poller.poll(APP) is None

    def completeness(self, cohort_id: str) -> Completeness:
        (found,) = self.parts.store.completeness.of(APP, [cohort_id])
        return found

    def reasons(self, cohort_id: str) -> set[IncompleteReason]:
        return {open.reason for open in self.completeness(cohort_id).reasons}

    def freshness(self, cohort_id: str) -> FreshnessState:
        (found,) = self.parts.store.freshness.of(APP, [cohort_id])
        return found.state(time.time_ns() // 1_000_000)
