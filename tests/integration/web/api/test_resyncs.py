"""A full sync, or a file, that replaces the members of a cohort: the calls."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any

import gevent
import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient

from app.auth.admin_actions import ResyncRefused
from app.auth.audit_trail import Operator
from app.auth.member_import import MemberImport
from app.cohorts import ResyncRefusal
from app.services import services
from app.settings import ApiKey
from app.store import ResyncPlace
from app.store.losses import Loss, LossKind
from app.web.http.upload import read_upload
from simulator import payloads
from tests.integration.conftest import APP, caller
from tests.integration.store_contents import members, traits
from tests.support.effort import PARTITIONS

BOSS = "the-admin-key"
TRAIT = "[Amplitude] Power users: abc123"
USERS = [f"u{n}" for n in range(20)]
PATH = "/api/v1/cohorts/abc123/resync"
FILE = "/api/v1/cohorts/abc123/members"


@pytest.fixture(params=PARTITIONS)
def service(request: pytest.FixtureRequest, make_app: Callable[..., Flask]) -> Flask:
    return make_app(store_partitions=request.param, admin_api_keys=(ApiKey(APP, BOSS),))


@pytest.fixture
def boss(service: Flask) -> FlaskClient:
    boss = caller(service, BOSS)
    say(boss, True, *USERS)
    return boss


def say(http: FlaskClient, member: bool, *users: str) -> None:
    body = payloads.batch(users, TRAIT, member)
    assert http.post(payloads.COHORT_PATH, json=body).status_code == 200


def outcome(response: Any) -> tuple[int, str]:
    return response.status_code, response.json.get("reason") or response.json.get("state")


class TestResync:
    def test_resync__from_start_to_finish(
        self, boss: FlaskClient, redis_client: redis.Redis
    ) -> None:
        assert outcome(boss.get(PATH)) == (404, "no_resync")
        opened = boss.post(PATH)
        assert outcome(opened) == (202, "open")
        say(boss, True, *USERS[:15], "new")
        now = boss.get(PATH).json
        assert (now["confirmed"], now["unconfirmed"]) == (16, 5)
        assert now["startedAt"] == opened.json["startedAt"]
        for _ in range(2):  # a repeat returns the same
            done = boss.post(f"{PATH}/finish")
            assert outcome(done) == (200, "finished")
            assert (done.json["removed"], done.json["members"]) == (5, 16)
        assert outcome(boss.get(PATH)) == (200, "finished")
        assert members(redis_client, APP) == {"abc123": {*USERS[:15], "new"}}
        cohort = boss.get("/api/v1/cohorts/abc123").json
        assert cohort["completeness"]["state"] == "verified"
        assert cohort["completeness"]["verifiedBy"] == "resync"

    def test_open__twice__is_refused(self, boss: FlaskClient) -> None:
        boss.post(PATH, json={"quietSeconds": 600})
        assert boss.get(PATH).json["quietSeconds"] == 600
        assert outcome(boss.post(PATH)) == (409, "resync_unfinished")
        assert outcome(boss.put(FILE, data="user_id\n", content_type="text/csv")) == (
            409,
            "resync_unfinished",
        )

    def test_finish__unless_forced__is_refused(
        self, boss: FlaskClient, redis_client: redis.Redis
    ) -> None:
        boss.post(PATH)
        assert outcome(boss.post(f"{PATH}/finish")) == (409, "resync_empty")
        say(boss, True, "u0")
        assert outcome(boss.post(f"{PATH}/finish")) == (409, "resync_shrinks")
        assert members(redis_client, APP) == {"abc123": set(USERS)}
        assert outcome(boss.post(f"{PATH}/finish", json={"force": True})) == (200, "finished")
        assert members(redis_client, APP) == {"abc123": {"u0"}}
        assert outcome(boss.delete(PATH)) == (409, "resync_finishing")

    def test_finish__of_an_import_whose_file_has_not_arrived__is_refused_though_forced(
        self, service: Flask, boss: FlaskClient, redis_client: redis.Redis
    ) -> None:
        store, place = services(service).store, ResyncPlace(APP, "abc123")
        with MemberImport(store, Operator("a test", "nobody"), place) as importing:
            importing.stage(USERS[:15])
            for body in ({}, {"force": True}):
                assert outcome(boss.post(f"{PATH}/finish", json=body)) == (409, "resync_unfinished")
        assert members(redis_client, APP) == {"abc123": set(USERS)}

    def test_finish__after_the_store_lost_data__is_refused_though_forced(
        self, service: Flask, boss: FlaskClient
    ) -> None:
        boss.post(PATH)
        say(boss, True, *USERS)
        started = boss.get(PATH).json["startedAt"]
        store = services(service).store
        store.losses.spread(Loss(APP, LossKind.SET_BACK, started + 1, acknowledged=False))
        forced = boss.post(f"{PATH}/finish", json={"force": True})
        assert outcome(forced) == (409, "resync_store_lost")
        assert outcome(boss.delete(PATH)) == (200, "aborting")

    def test_import__while_its_cohort_is_being_deleted__ends(
        self, service: Flask, boss: FlaskClient
    ) -> None:
        store = services(service).store
        with MemberImport(store, Operator("a test", "nobody"), ResyncPlace(APP, "abc123")) as one:
            one.stage(USERS)
            for _ in one.compare():
                pass
            store.jobs.begin_deletion(APP, "abc123")
            with pytest.raises(ResyncRefused) as caught:
                for _ in one.apply(force=False):
                    pass
        assert caught.value.reason is ResyncRefusal.ENDED

    def test_abort__ends_it(self, boss: FlaskClient, redis_client: redis.Redis) -> None:
        boss.post(PATH)
        assert outcome(boss.delete(PATH)) == (200, "aborting")
        assert outcome(boss.get(PATH)) == (404, "no_resync")
        assert outcome(boss.delete(PATH)) == (404, "no_resync")
        assert outcome(boss.post(f"{PATH}/finish")) == (404, "no_resync")
        assert members(redis_client, APP) == {"abc123": set(USERS)}

    def test_open__of_a_cohort_that_is_unknown_or_being_deleted__is_refused(
        self, boss: FlaskClient
    ) -> None:
        assert outcome(boss.post("/api/v1/cohorts/nope/resync")) == (404, "unknown_cohort")
        boss.delete("/api/v1/cohorts/abc123")
        assert outcome(boss.post(PATH)) == (404, "cohort_being_deleted")

    @pytest.mark.parametrize("body", [{"quietSeconds": 0}, {"quietSeconds": "600"}, []])
    def test_open__with_an_invalid_body__begins_nothing(
        self, boss: FlaskClient, body: object
    ) -> None:
        assert boss.post(PATH, json=body).status_code == 400
        assert boss.get(PATH).status_code == 404

    def test_audit_trail__has_each_step(self, service: Flask, boss: FlaskClient) -> None:
        boss.post(PATH)
        boss.delete(PATH)
        boss.put(FILE, data="user_id\n" + "\n".join(USERS), content_type="text/csv")
        boss.post(PATH)
        say(boss, True, *USERS)
        for _ in range(2):  # a repeat does nothing
            boss.post(f"{PATH}/finish")
        found = [entry["action"] for entry in services(service).store.audit_trail.all()]
        done = ["open_resync", "abort_resync", "import_members", "open_resync", "finish_resync"]
        assert sorted(found) == sorted(done)


class TestImport:
    def put(self, http: FlaskClient, data: str | bytes, query: str = "", **options: Any) -> Any:
        return http.put(f"{FILE}?{query}", data=data, **{"content_type": "text/csv", **options})

    @pytest.mark.parametrize("compressed", [False, True])
    def test_file__replaces_the_members(
        self, boss: FlaskClient, redis_client: redis.Redis, compressed: bool
    ) -> None:
        text = '"amplitude_id","user_id"\r\n' + "".join(
            f'"{n}","{user}"\r\n' for n, user in enumerate([*USERS[:15], "new", "", "new"])
        )
        data = gzip.compress(text.encode()) if compressed else text.encode()
        expected = {
            "added": 1,
            "removed": 5,
            "unchanged": 15,
            "rejected": 1,
            "errors": [{"place": "", "message": "1 row has no user id."}],
        }
        assert self.put(boss, data, "dry_run=true").json == expected
        assert members(redis_client, APP) == {"abc123": set(USERS)}
        assert self.put(boss, data).json == expected
        assert members(redis_client, APP) == {"abc123": {*USERS[:15], "new"}}
        assert traits(redis_client, APP)["u19"] == {TRAIT: "false"}
        cohort = boss.get("/api/v1/cohorts/abc123").json
        assert cohort["completeness"]["verifiedBy"] == "import"

    @pytest.mark.parametrize(
        ("query", "notes"),
        [
            ("dry_run=true", ["The import would be refused: resync_shrinks."]),
            ("dry_run=true&force=true", []),
        ],
    )
    def test_dry_run__of_an_import_that_would_be_refused__says_so(
        self, boss: FlaskClient, query: str, notes: list[str]
    ) -> None:
        reply = self.put(boss, "user_id\nu0\n", query)
        assert reply.status_code == 200
        assert [one["message"] for one in reply.json["errors"]] == notes

    def test_ndjson__in_chunks_without_a_length(
        self, boss: FlaskClient, redis_client: redis.Redis
    ) -> None:
        lines = "".join(f'{{"userId": "{user}"}}\n' for user in USERS[:10])
        reply = self.put(boss, lines, content_type="application/x-ndjson")
        assert (reply.status_code, reply.json["removed"]) == (200, 10)

    def test_name__creates_the_cohort(self, boss: FlaskClient, redis_client: redis.Redis) -> None:
        path = "/api/v1/cohorts/xyz/members"
        options: Any = {"data": "user_id\nalice\n", "content_type": "text/csv"}
        refused = boss.put(path, **options)
        assert outcome(refused) == (404, "unknown_cohort")
        assert "?name=" in refused.json["detail"]
        assert boss.put(f"{path}?name=VIPs&dry_run=true", **options).json["added"] == 1
        assert boss.get("/api/v1/cohorts/xyz").status_code == 404
        assert boss.put(f"{path}?name=VIPs", **options).json["added"] == 1
        assert traits(redis_client, APP)["alice"] == {"[Amplitude] VIPs: xyz": "true"}

    def test_name__that_is_a_whole_trait_name__is_kept(
        self, boss: FlaskClient, redis_client: redis.Redis
    ) -> None:
        reply = boss.put(
            "/api/v1/cohorts/xyz/members",
            query_string={"name": "[Amplitude] VIPs: xyz"},
            data="user_id\nalice\n",
            content_type="text/csv",
        )
        assert reply.status_code == 200
        assert traits(redis_client, APP)["alice"] == {"[Amplitude] VIPs: xyz": "true"}

    @pytest.mark.parametrize(
        ("cohort_id", "name"), [("us:7", "VIPs"), ("%20x", "VIPs"), ("xyz", "x" * 500)]
    )
    def test_name__that_no_call_could_have__creates_nothing(
        self, boss: FlaskClient, redis_client: redis.Redis, cohort_id: str, name: str
    ) -> None:
        reply = boss.put(
            f"/api/v1/cohorts/{cohort_id}/members?name={name}",
            data="user_id\nalice\n",
            content_type="text/csv",
        )
        assert outcome(reply) == (400, "invalid_parameter")
        assert reply.json["errors"][0]["place"] == "name"
        assert set(members(redis_client, APP)) == {"abc123"}

    @pytest.mark.parametrize(
        ("data", "query", "refused"),
        [
            ("user_id\n", "", (409, "resync_empty")),
            ("user_id\nu0\nu1\n", "", (409, "resync_shrinks")),
            ("id\nu0\n", "", (400, "invalid_file")),
            ("user_id\nu0\n", "column=email", (400, "invalid_file")),
            (b"user_id\n\xff\n", "", (400, "invalid_file")),
            (gzip.compress(b"user_id\nu0\n" * 99)[:-9], "", (400, "invalid_encoding")),
            (b"\x1f\x8bnot gzip", "", (400, "invalid_encoding")),
        ],
        ids=["empty", "small", "no column", "no such column", "not text", "truncated", "not gzip"],
    )
    def test_file__that_is_refused__changes_nothing(
        self,
        boss: FlaskClient,
        redis_client: redis.Redis,
        data: str | bytes,
        query: str,
        refused: tuple[int, str],
    ) -> None:
        assert outcome(self.put(boss, data, query)) == refused
        assert members(redis_client, APP) == {"abc123": set(USERS)}
        assert list(redis_client.scan_iter(match="*:confirmed")) == []
        assert boss.get(PATH).status_code == 404

    def test_force__removes_most(self, boss: FlaskClient, redis_client: redis.Redis) -> None:
        assert self.put(boss, "user_id\nu0\n", "force=true").json["removed"] == 19
        assert members(redis_client, APP) == {"abc123": {"u0"}}

    @pytest.mark.parametrize(
        ("content_type", "encoding", "refused"),
        [
            ("application/json", "", (415, "unsupported_media_type")),
            ("text/csv; charset=latin-1", "", (415, "unsupported_media_type")),
            ("text/csv", "br", (415, "unsupported_media_type")),
            ("text/csv", "gzip", (400, "invalid_encoding")),
        ],
    )
    def test_type__of_something_else__is_refused(
        self, boss: FlaskClient, content_type: str, encoding: str, refused: tuple[int, str]
    ) -> None:
        headers = {"Content-Encoding": encoding} if encoding else {}
        reply = self.put(
            boss, "user_id\nu0\n", "force=true", content_type=content_type, headers=headers
        )
        assert outcome(reply) == refused

    def test_file__without_any_users__lets_others_have_a_turn(self, service: Flask) -> None:
        turns = 0

        def take_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                gevent.sleep(0)

        other = gevent.spawn(take_turns)
        body = gzip.compress(b"\n" * 5_000_000)
        with service.test_request_context(method="PUT", data=body, content_type="text/csv"):
            assert sum(map(len, read_upload())) == 5_000_000
        other.kill()
        assert turns > 50


def test_import__of_users_who_are_not_registered__rejects_them(
    make_app: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    service = make_app(user_policy="known", admin_api_keys=(ApiKey(APP, BOSS),))
    boss = caller(service, BOSS)
    boss.post("/api/v1/users", json={"userIds": ["a", "b"]})
    reply = boss.put(f"{FILE}?name=x", data="user_id\na\nb\nc\n", content_type="text/csv").json
    assert (reply["added"], reply["rejected"]) == (2, 1)
    assert reply["errors"] == [{"place": "", "message": "1 user is not registered."}]
    text = "user_id,x\n" + "a\0b,\n" * 60 + "a,\nc,\n,\n,\n"
    reply = boss.put(f"{FILE}?force=true", data=text, content_type="text/csv").json
    assert reply["rejected"] == 63
    assert [error["place"] for error in reply["errors"]] == [
        *(f"line.{n}" for n in range(2, 50)),
        *("", ""),
    ]
    counts = [error["message"] for error in reply["errors"][-2:]]
    assert counts == ["2 rows have no user id.", "1 user is not registered."]
    boss.put(f"{FILE}?force=true", data="user_id\na\nb\n", content_type="text/csv")
    assert members(redis_client, APP) == {"abc123": {"a", "b"}}
