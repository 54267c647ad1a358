"""The simulator's Behavioral Cohorts API, as its documentation describes Amplitude's."""

from __future__ import annotations

import csv
import io
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import urllib3
from click.testing import CliRunner

from simulator.cli import main
from simulator.cli.exit_codes import ExitCode
from simulator.cohort import Cohort
from simulator.upstream import ALWAYS, ServedCohort, SyncInfo, Upstream
from tests.integration.simulator.receiver import KEY, Receiver
from tests.support.polling import wait_until

LIST = "/api/3/cohorts?includeSyncInfo=true"
ROOT = Path(__file__).resolve().parents[3]


class Caller:
    """Calls the API with its keys, and follows no redirect."""

    def __init__(self, upstream: Upstream, keys: str | None = None) -> None:
        self.url = upstream.url
        self.headers = urllib3.make_headers(
            basic_auth=keys or f"{upstream.api_key}:{upstream.secret_key}"
        )
        self.http = urllib3.PoolManager(retries=False, timeout=10, maxsize=8)

    def get(self, path: str) -> urllib3.BaseHTTPResponse:
        return self.http.request("GET", self.url + path, headers=self.headers)

    def export(self, cohort_id: str, query: str = "") -> str:
        reply = self.get(f"/api/5/cohorts/request/{cohort_id}{query}")
        assert reply.status == 202, reply.data
        request_id: str = reply.json()["request_id"]
        wait_until(lambda: self.status(request_id) == "JOB COMPLETED")
        return request_id

    def status(self, request_id: str) -> str:
        status: str = self.get(f"/api/5/cohorts/request-status/{request_id}").json()["async_status"]
        return status


def served(**changes: Any) -> ServedCohort:
    return ServedCohort("a1", "Power users", ["alice", 'o"brien'], **changes)


def rows(body: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(body.decode(), newline="")))


def test_list__reports_sizes_and_syncs() -> None:
    sync = SyncInfo(frequency="daily", last_successful=1767225600.0)
    cohorts = [
        served(anonymous=3, syncs=[sync], last_computed=1767225000.9),
        ServedCohort("b2", "Hidden", discoverable=False),
    ]
    with Upstream(cohorts) as upstream:
        (found,) = Caller(upstream).get(LIST).json()["cohorts"]
        assert (found["id"], found["size"], found["lastComputed"]) == ("a1", 5, 1767225000)
        assert found["definition"]["countGroup"]["name"] == "User"
        assert found["syncMetadata"] == [
            {
                "target": "cohort-receiver",
                "frequency": "daily",
                "last_successful": "2026-01-01T00:00:00+00:00",
                "last_failure": None,
                "params": {"mapping_key": "user_id"},
            }
        ]
        (found,) = Caller(upstream).get("/api/3/cohorts").json()["cohorts"]
        assert "syncMetadata" not in found


@pytest.mark.parametrize("keys", ["simulated-api-key:wrong", "wrong:simulated-secret-key"])
def test_call__with_wrong_keys__is_forbidden(keys: str) -> None:
    with Upstream([served()]) as upstream:
        reply = Caller(upstream, keys).get(LIST)
        assert reply.status == 403
        assert reply.json()["error"]


def test_export__takes_time_and_has_anonymous_users() -> None:
    with Upstream([served(anonymous=2)], job_seconds=0.2) as upstream:
        caller = Caller(upstream)
        request_id = caller.get("/api/5/cohorts/request/a1").json()["request_id"]
        assert caller.status(request_id) == "JOB INPROGRESS"
        assert caller.get(f"/api/5/cohorts/request/{request_id}/file").status == 404
        wait_until(lambda: caller.status(request_id) == "JOB COMPLETED")
        header, *users = rows(caller.get(f"/api/5/cohorts/request/{request_id}/file").data)
        assert header == ["amplitude_id", "user_id"]
        assert sorted(user_id for _, user_id in users) == ["", "", "alice", 'o"brien']
        assert len({amplitude_id for amplitude_id, _ in users}) == 4
        assert caller.get("/api/3/cohorts/usage").json() == {"limit": 500, "count": 1}


def test_export__with_properties__has_their_columns() -> None:
    with Upstream([served()], job_seconds=0) as upstream:
        caller = Caller(upstream)
        request_id = caller.export("a1", "?props=1&propKeys=email")
        found = rows(caller.get(f"/api/5/cohorts/request/{request_id}/file").data)
        assert found[0] == ["amplitude_id", "user_id", "email"]
        assert found[1][1:] == ["alice", "email:alice"]


def test_large_file__is_redirected_to_storage_for_a_minute_and_without_credentials() -> None:
    with Upstream([served()], job_seconds=0, inline_bytes=0) as upstream:
        caller = Caller(upstream)
        request_id = caller.export("a1")
        path = f"/api/5/cohorts/request/{request_id}/file"
        reply = caller.get(path)
        assert reply.status == 302
        address = reply.headers["Location"]
        assert address.startswith(upstream.storage_url)
        assert len(rows(caller.http.request("GET", address).data)) == 3
        assert caller.http.request("GET", address.replace("Sig", "Gis")).status == 403
        assert upstream.leaks == []
        assert caller.http.request("GET", address, headers=caller.headers).status == 400
        assert len(upstream.leaks) == 1
        upstream.address_seconds = -1
        assert caller.http.request("GET", caller.get(path).headers["Location"]).status == 403


def test_more_requests_than_allowed__are_throttled() -> None:
    with Upstream([served()], retry_after=7) as upstream:
        caller = Caller(upstream)
        statuses = [caller.get(LIST).status for _ in range(61)]
        assert statuses == [200] * 60 + [429]
        assert caller.get(LIST).headers["Retry-After"] == "7"


def test_fifth_request_at_once__is_throttled() -> None:
    with Upstream([served()]) as upstream:
        for _ in range(4):
            upstream.enter()
        caller = Caller(upstream)
        assert caller.get(LIST).status == 429
        upstream.leave()
        assert caller.get(LIST).status == 200


def test_exports__of_a_month__are_limited() -> None:
    with Upstream([served()], max_exports=1) as upstream:
        caller = Caller(upstream)
        assert caller.get("/api/5/cohorts/request/a1").status == 202
        assert caller.get("/api/5/cohorts/request/a1").status == 429


@pytest.mark.parametrize(
    ("cohort", "status"),
    [(served(size=2_000_001), 400), (served(discoverable=False), 404)],
    ids=["too large", "not discoverable"],
)
def test_export__of_some_cohorts__is_refused(cohort: ServedCohort, status: int) -> None:
    with Upstream([cohort]) as upstream:
        assert Caller(upstream).get("/api/5/cohorts/request/a1").status == status
        assert upstream.exports == 0


def _status_of_list(caller: Caller) -> object:
    return caller.get(LIST).status


def _status_of_export(caller: Caller) -> object:
    return caller.status(caller.get("/api/5/cohorts/request/a1").json()["request_id"])


def _file_of_export(caller: Caller) -> object:
    path = f"/api/5/cohorts/request/{caller.export('a1')}/file"
    try:
        return caller.get(path).data.decode()
    except urllib3.exceptions.HTTPError as error:
        return type(error).__name__


@pytest.mark.parametrize(
    ("fault", "call", "outcome"),
    [
        ("forbidden", _status_of_list, 403),
        ("throttled", _status_of_list, 429),
        ("unavailable", _status_of_list, 503),
        ("malformed", lambda caller: caller.get(LIST).data, b"<html>Sign in</html>"),
        ("stuck", _status_of_export, "JOB INPROGRESS"),
        ("failed", _status_of_export, "JOB FAILED"),
        ("truncated", _file_of_export, "ProtocolError"),
        ("cut", _file_of_export, '"amplitude_id","user_id"\n"100000000000","'),
        (
            "double-quoted",
            _file_of_export,
            '"amplitude_id","user_id"\n"100000000000","""alice"""\n',
        ),
    ],
)
def test_fault__is_injected_as_often_as_told(
    fault: str, call: Callable[[Caller], object], outcome: object
) -> None:
    with Upstream([ServedCohort("a1", "n", ["alice"])], job_seconds=0) as upstream:
        upstream.faults[fault] = 1
        assert call(Caller(upstream)) == outcome
        assert call(Caller(upstream)) != outcome


@pytest.mark.parametrize(("fault", "status"), [("expired", 403), ("storage-down", 503)])
def test_fault__of_the_storage__is_injected(fault: str, status: int) -> None:
    with Upstream([served()], job_seconds=0, inline_bytes=0) as upstream:
        upstream.faults[fault] = ALWAYS
        caller = Caller(upstream)
        path = f"/api/5/cohorts/request/{caller.export('a1')}/file"
        for _ in range(2):
            address = caller.get(path).headers["Location"]
            assert caller.http.request("GET", address).status == status


def test_sync__with_upstream__serves_what_it_synced_until_ctrl_c() -> None:
    with Receiver() as receiver:
        words = [
            *("sync", receiver.url, "--key", KEY, "--users", "40", "--cohort", "n:c1"),
            *("--cadence", "daily", "--anonymous", "3"),
            *("--upstream-port", "0", "--upstream-stays", "--upstream-fault", "throttled=1"),
        ]
        with subprocess.Popen(
            [sys.executable, "-u", "-m", "simulator", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            address = ""
            for line in process.stdout:
                if found := re.search(r"Behavioral Cohorts API: (http://[\d.:]+)", line):
                    address = found[1]
                if "Press Ctrl-C" in line:
                    break
            headers = urllib3.make_headers(basic_auth="simulated-api-key:simulated-secret-key")
            http = urllib3.PoolManager(retries=False, timeout=10)
            assert http.request("GET", address + LIST, headers=headers).status == 429
            (cohort,) = http.request("GET", address + LIST, headers=headers).json()["cohorts"]
            assert (cohort["id"], cohort["size"]) == ("c1", 43)
            (sync,) = cohort["syncMetadata"]
            assert sync["frequency"] == "daily"
            assert sync["last_successful"]
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == ExitCode.OK


@pytest.mark.parametrize(
    "words",
    [("--upstream-fault", "nonsense"), ("--upstream-fault", "stuck=x"), ("--upstream-keys", "key")],
)
def test_sync__with_wrong_upstream_options__is_refused(words: tuple[str, str]) -> None:
    with Receiver() as receiver:
        call = ["sync", receiver.url, "--key", KEY, "--upstream-port", "0", *words]
        result = CliRunner().invoke(main, call)
        assert result.exit_code == ExitCode.USAGE
        assert words[0] in result.output


def test_synced_cohort__is_served_as_it_was_computed() -> None:
    cohort = Cohort("Power users", "a1", [f"user{n}" for n in range(20)], size=10, churn=0.2)
    with Upstream([ServedCohort("a1", "Power users", syncs=[SyncInfo()])]) as upstream:
        caller = Caller(upstream)
        cohort.advance()
        upstream.computed("a1", [cohort.ids[user] for user in cohort.members])
        upstream.synced("a1", succeeded=False)
        (found,) = caller.get(LIST).json()["cohorts"]
        assert found["size"] == 10
        assert found["syncMetadata"][0]["last_successful"] is None
        assert found["syncMetadata"][0]["last_failure"] is not None
        upstream.synced("a1", succeeded=True)
        (found,) = caller.get(LIST).json()["cohorts"]
        assert found["syncMetadata"][0]["last_successful"] is not None
