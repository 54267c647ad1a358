"""The commands and calls that ask Amplitude."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient

from app.settings import ApiKey
from app.store.upstream import RECONCILE
from simulator.upstream import ALWAYS, SyncInfo
from tests.integration.conftest import APP, caller
from tests.integration.upstream.here import Here

BOSS, READER = "the-admin-key", "the-read-key"
PATH = "/api/v1/cohorts/a1/reconcile"


@pytest.fixture
def here(make_here: Callable[..., Here]) -> Here:
    here = make_here(admin_api_keys=(ApiKey(APP, BOSS),), read_api_keys=(ApiKey(APP, READER),))
    here.send("a1", ["both", "stale"])
    here.serve("a1", user_ids=["both", "lost"], anonymous=1, syncs=[SyncInfo("receiver")])
    return here


@pytest.fixture
def boss(here: Here) -> FlaskClient:
    return caller(here.app, BOSS)


def run(here: Here, *words: str) -> Result:
    result = here.app.test_cli_runner().invoke(args=["cohorts", *words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def finish() -> None:
    """Let the background work of this process finish."""
    gevent.wait(timeout=30)


class TestReconcileCommand:
    def test_reconcile__of_a_cohort_that_differs__says_how(self, here: Here) -> None:
        result = run(here, "reconcile", "a1")
        assert result.exit_code == 1
        rows = {" ".join(line.split()) for line in result.stdout.splitlines()}
        assert rows == {
            "in Amplitude: 3 (1 anonymous)",
            "members: 2",
            "missing: 1",
            "extra: 1",
            "exports: 1 of 100 this month; Amplitude had counted 0 of 500",
        }
        assert "Waiting for Amplitude's export" in result.stderr
        assert result.stderr.endswith("add --apply.\n")
        assert "reconciled" not in result.stderr  # the log line repeats the report
        (entry,) = here.parts.store.audit_trail.all()
        assert (entry["action"], entry["cohort"]) == ("reconcile", "a1")

    def test_reconcile__with_ids__prints_them_all(self, here: Here) -> None:
        result = run(here, "reconcile", "a1", "--ids")
        assert sorted(result.stdout.splitlines()) == ["extra\tstale", "missing\tlost"]

    def test_reconcile__applied__replaces_the_members(self, here: Here) -> None:
        result = run(here, "reconcile", "a1", "--apply")
        assert result.exit_code == 0, result.output
        assert "1 user entered, 1 left" in result.stdout
        result = run(here, "reconcile", "a1")
        assert "nobody is missing or extra" in result.stdout
        result = run(here, "reconcile", "a1", "--json")
        assert result.exit_code == 0
        assert json.loads(result.stdout)["missing"] == 0

    def test_reconcile__refused__needs_force(self, here: Here) -> None:
        here.serve("a1", user_ids=[])
        result = run(here, "reconcile", "a1", "--apply")
        assert result.exit_code == 1
        assert "resync_empty" in result.stderr
        assert run(here, "reconcile", "a1", "--apply", "--force").exit_code == 0

    def test_reconcile__that_fails__says_why(self, here: Here) -> None:
        here.server.faults["forbidden"] = ALWAYS
        result = run(here, "reconcile", "a1")
        assert result.exit_code == 1
        assert "upstream_forbidden" in result.stderr
        assert "simulated" not in result.output

    def test_reconcile__of_an_unknown_cohort__is_an_error(self, here: Here) -> None:
        assert (
            "Unknown cohort: b2. To create it, add --apply." in run(here, "reconcile", "b2").stderr
        )
        applied = run(here, "reconcile", "b2", "--apply")
        assert (applied.exit_code, "upstream_not_listed" in applied.stderr) == (1, True)
        assert run(here, "upstream", "--json").exit_code == 0


class TestUpstreamCommand:
    def test_upstream__lists_what_amplitude_says(self, here: Here) -> None:
        here.serve("b2", size=7, syncs=[SyncInfo("receiver", "daily")])
        result = run(here, "upstream")
        assert "Cohorts that Amplitude lists: 2\n" in result.stdout
        lines = [line.split() for line in result.stdout.splitlines()]
        assert ["a1", "2", "3", "-", "unverified", "fresh", "hourly", "-"] in lines
        assert ["b2", "A", "cohort", "7", "daily", "-", "receiver"] in lines
        found = json.loads(run(here, "upstream", "--json").stdout)
        assert found["cohorts"][0]["size"] == 3
        assert found["absent"][0]["id"] == "b2"

    def test_upstream__that_fails__says_why(self, here: Here) -> None:
        here.server.faults["malformed"] = ALWAYS
        result = run(here, "upstream")
        assert result.exit_code == 1
        assert "upstream_bad_reply" in result.stderr
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1

    def test_upstream__of_another_app__is_wrong_usage(self, here: Here) -> None:
        result = run(here, "upstream", "--app-id", "other")
        assert result.exit_code == 2
        assert f"AMPLITUDE_KEYS has: {APP}." in result.stderr

    def test_upstream__without_keys__says_which_setting_is_missing(
        self, make_app: Callable[..., Flask]
    ) -> None:
        result = make_app().test_cli_runner().invoke(args=["cohorts", "upstream"])
        assert (result.exit_code, "Error: AMPLITUDE_KEYS is not set.\n" in result.stderr) == (
            2,
            True,
        )


class TestReconcileCall:
    def test_reconcile__begins_and_reports(self, here: Here, boss: FlaskClient) -> None:
        assert boss.get(PATH).json["reason"] == "no_reconcile"
        begun = boss.post(PATH)
        assert begun.status_code == 202
        assert begun.json["state"] == "running"
        assert boss.get(PATH).json["state"] == "running"
        finish()
        found = boss.get(PATH).json
        assert (found["state"], found["missing"], found["extra"]) == ("done", 1, 1)
        assert (found["missingIds"], found["extraIds"]) == (["lost"], ["stale"])
        assert found["exports"] == {
            "used": 1,
            "limit": 100,
            "amplitudeUsed": 0,
            "amplitudeLimit": 500,
        }

    def test_ids__for_a_reader__are_left_out(self, here: Here, boss: FlaskClient) -> None:
        boss.post(PATH)
        finish()
        found = caller(here.app, READER).get(PATH).json
        assert (found["missing"], found["missingIds"], found["extraIds"]) == (1, None, None)

    def test_reconcile__applied__replaces_the_members(self, here: Here, boss: FlaskClient) -> None:
        assert boss.post(PATH, json={"apply": True}).status_code == 202
        finish()
        found = boss.get(PATH).json
        assert (found["state"], found["added"], found["removed"]) == ("done", 1, 1)
        cohort = boss.get("/api/v1/cohorts/a1").json
        assert cohort["completeness"]["verifiedBy"] == "reconcile"
        assert cohort["completeness"]["upstream"]["anonymous"] == 1

    @pytest.mark.parametrize("key", [READER, "the-ingest-key"])
    def test_reconcile__without_scope_admin__is_refused(self, key: str, here: Here) -> None:
        assert caller(here.app, key).post(PATH).status_code == 403

    @pytest.mark.parametrize("body", [{"apply": "yes"}, {"column": ""}, {"column": 7}])
    def test_reconcile__with_a_wrong_body__is_refused(
        self, body: dict[str, Any], boss: FlaskClient
    ) -> None:
        assert boss.post(PATH, json=body).json["reason"] == "invalid_payload"

    def test_reconcile__applied_to_a_cohort_that_was_lost__creates_it(
        self, here: Here, boss: FlaskClient
    ) -> None:
        here.serve("b2", user_ids=["u1", "u2"])
        path = "/api/v1/cohorts/b2/reconcile"
        assert boss.post(path, json={"apply": True}).status_code == 202
        finish()
        assert boss.get(path).json["added"] == 2
        cohort = boss.get("/api/v1/cohorts/b2").json
        assert (cohort["trait"], cohort["members"]) == ("[Amplitude] A cohort: b2", 2)
        assert cohort["completeness"]["state"] == "verified"

    def test_reconcile__of_an_unknown_cohort__is_a_404(self, boss: FlaskClient) -> None:
        path = "/api/v1/cohorts/b2/reconcile"
        assert boss.post(path).json["reason"] == "unknown_cohort"
        assert boss.get(path).json["reason"] == "unknown_cohort"

    def test_reconcile__beside_another__is_refused(self, here: Here, boss: FlaskClient) -> None:
        with here.parts.store.upstream.lease(APP, RECONCILE):
            refused = boss.post(PATH)
        assert (refused.status_code, refused.json["reason"]) == (409, "reconcile_running")

    def test_reconcile__without_exports__is_refused(self, here: Here, boss: FlaskClient) -> None:
        for _ in range(100):
            assert here.parts.store.upstream.spend_export(APP, 100)
        refused = boss.post(PATH)
        assert (refused.status_code, refused.json["reason"]) == (409, "export_budget_spent")

    def test_reconcile__without_keys__is_refused(self, make_app: Callable[..., Flask]) -> None:
        app = make_app(admin_api_keys=(ApiKey(APP, BOSS),))
        caller(app).post("/lists", json={"name": "[Amplitude] A cohort: a1"})
        refused = caller(app, BOSS).post(PATH)
        assert (refused.status_code, refused.json["reason"]) == (409, "upstream_not_configured")


def test_metrics__tell_of_polls_and_exports(here: Here) -> None:
    def metrics() -> dict[str, float]:
        text = caller(here.app, READER).get("/metrics").text
        rows = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        here.parts.store_gauges._queried_at = None  # it remembers for seconds
        return {name: float(value) for name, value in rows if "upstream" in name}

    assert metrics()["cohort_receiver_upstream_poll_timestamp_seconds"] == 0
    here.serve("b2", syncs=[SyncInfo()])
    here.server.cohorts["a1"].syncs = [SyncInfo(last_successful=time.time() - 7200)]
    here.poll()
    assert here.parts.store.upstream.spend_export(APP, 100)
    here.server.faults["forbidden"] = 1
    here.parts.poller.poll(APP)
    here.parts.meter.flush()
    found = metrics()
    assert found["cohort_receiver_upstream_poll_timestamp_seconds"] == pytest.approx(
        time.time(), abs=60
    )
    assert found["cohort_receiver_upstream_exports"] == 1
    assert found["cohort_receiver_upstream_absent_cohorts"] == 1
    assert found["cohort_receiver_upstream_behind_cohorts"] == 1
    assert found['cohort_receiver_upstream_failures_total{reason="upstream_forbidden"}'] >= 1


def test_metrics__without_keys__have_none_of_it(make_app: Callable[..., Flask]) -> None:
    app = make_app(read_api_keys=(ApiKey(APP, READER),))
    text = caller(app, READER).get("/metrics").text
    assert "cohort_receiver_upstream_poll" not in text
    assert "cohort_receiver_upstream_exports" not in text


class TestUpstreamCall:
    def test_upstream__reports_the_polls_and_who_never_arrived(self, here: Here) -> None:
        reader = caller(here.app, READER)
        assert reader.get("/api/v1/upstream").json["polledAt"] is None
        here.serve("b2", size=7, syncs=[SyncInfo("receiver", "daily")])
        here.poll()
        found = reader.get("/api/v1/upstream").json
        assert abs(found["polledAt"] - time.time() * 1000) < 60_000
        assert (found["listed"], found["absentTotal"], found["failure"]) == (2, 1, None)
        (absent,) = found["absent"]
        assert (absent["id"], absent["size"], absent["targets"]) == ("b2", 7, "receiver")
        here.server.faults["forbidden"] = 1
        here.parts.poller.poll(APP)
        assert reader.get("/api/v1/upstream").json["failure"] == "upstream_forbidden"

    def test_upstream__without_keys__is_refused(self, make_app: Callable[..., Flask]) -> None:
        app = make_app(read_api_keys=(ApiKey(APP, READER),))
        refused = caller(app, READER).get("/api/v1/upstream")
        assert (refused.status_code, refused.json["reason"]) == (409, "upstream_not_configured")
