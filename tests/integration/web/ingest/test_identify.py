"""Calls as a sender makes them: what is answered, and what is written."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable

import gevent
import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient

from app.services import services
from app.settings import ApiKey, Settings
from simulator.payloads import COHORT_PATH, batch, identify, user_ids
from tests.integration.conftest import APP, KEY, caller
from tests.integration.store_contents import traits, transitions
from tests.support.stores import running_store

TRAIT = "[Amplitude] n: 1"
ONE = identify("u1", TRAIT, True)


def post_raw(client: FlaskClient, data: bytes, **headers: str):
    headers = {"Content-Type": "application/json", **headers}
    return client.post(COHORT_PATH, data=data, headers=headers)


def assert_problem(reply, status: int, reason: str) -> dict:
    assert reply.content_type == "application/problem+json"
    problem = reply.json
    assert (reply.status_code, problem["status"], problem["reason"]) == (status, status, reason)
    assert problem["title"]
    assert problem["detail"]
    assert problem["requestId"] == reply.headers["X-Request-ID"]
    return problem


@pytest.fixture
def nothing_written(redis_client: redis.Redis):
    yield
    assert redis_client.keys("cohorts:{*") == []


def test_reply__of_a_batch__counts_what_happened(client: FlaskClient) -> None:
    assert client.post(COHORT_PATH, json=batch(["u1"], TRAIT, True)).json["changed"] == 1
    reply = client.post(COHORT_PATH, json=batch(["u1", "u2", "u3"], TRAIT, True))
    assert reply.json == {"accepted": 3, "changed": 2, "rejected": 0, "errors": []}


def test_reply__user_with_two_changed_cohorts__counts_once(client: FlaskClient) -> None:
    reply = client.post(
        COHORT_PATH, json=identify("u", "a: 1", True) | {"traits": {"a: 1": True, "b: 2": False}}
    )
    assert reply.json == {"accepted": 1, "changed": 1, "rejected": 0, "errors": []}


def test_many_cohorts_of_one_user__more_than_one_call_takes__are_all_written(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    said = {f"n: {i}": i % 3 != 0 for i in range(2500)}
    reply = client.post(COHORT_PATH, json=ONE | {"traits": said})
    assert reply.json["changed"] == 1
    assert redis_client.hgetall(f"cohorts:{{{APP}}}:user:u1") == {
        trait: str(member).lower() for trait, member in said.items()
    }


@pytest.mark.parametrize("path", [COHORT_PATH, COHORT_PATH + "/"])
def test_path__with_or_without_trailing_slash__works(client: FlaskClient, path: str) -> None:
    assert client.post(path, json=ONE).status_code == 200


def test_unknown_fields__anywhere__are_ignored(client: FlaskClient) -> None:
    item = ONE | {"messageId": "m", "anonymousId": None, "integrations": {}, "deep": [[{}]]}
    assert client.post(COHORT_PATH, json={"batch": [item], "sentAt": "now"}).status_code == 200


def test_empty_batch__is_fine_and_changes_nothing(
    client: FlaskClient, nothing_written: None
) -> None:
    reply = client.post(COHORT_PATH, json={"batch": []})
    assert (reply.status_code, reply.json["accepted"]) == (200, 0)


def test_gzip__of_one_or_several_members__is_read(client: FlaskClient) -> None:
    body = json.dumps(ONE).encode()
    for name in ("gzip", "x-gzip", " GZip"):
        headers = {"Content-Encoding": name}
        assert post_raw(client, gzip.compress(body), **headers).status_code == 200
    assert post_raw(client, body, **{"Content-Encoding": "identity"}).status_code == 200
    both = gzip.compress(body[:20]) + gzip.compress(body[20:])
    assert post_raw(client, both, **{"Content-Encoding": "gzip"}).status_code == 200


def test_body__that_ends_before_its_announced_length__is_400_though_it_is_json(
    client: FlaskClient, nothing_written: None
) -> None:
    body = json.dumps(ONE).encode()
    reply = client.post(
        COHORT_PATH,
        data=body,
        content_type="application/json",
        environ_overrides={"CONTENT_LENGTH": str(len(body) + 1)},
    )
    assert_problem(reply, 400, "invalid_encoding")


def test_body__that_breaks_off__is_400(client: FlaskClient, nothing_written: None) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise ConnectionResetError

    reply = client.post(COHORT_PATH, input_stream=Broken(b"{}"), content_type="application/json")
    assert_problem(reply, 400, "invalid_encoding")


def test_body__that_does_not_arrive_in_time__is_408(
    make_app: Callable[..., Flask], nothing_written: None
) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            gevent.sleep(10)
            return super().read(size)

    client = caller(make_app(body_timeout_seconds=0.01))
    body = json.dumps(ONE).encode()
    reply = client.post(COHORT_PATH, input_stream=Slow(body), content_type="application/json")
    problem = assert_problem(reply, 408, "body_timeout")
    assert "0.01 s" in problem["detail"]


def test_body__announced_as_too_large__is_refused_unread(
    make_app: Callable[..., Flask], nothing_written: None
) -> None:
    class Unread(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise AssertionError("was read")

    client = caller(make_app(max_body_bytes=2048))
    reply = client.post(
        COHORT_PATH,
        input_stream=Unread(b" " * 2049),
        content_length=2049,
        content_type="application/json",
    )
    assert_problem(reply, 413, "body_too_large")


@pytest.mark.parametrize(("members", "status"), [(999, 200), (1000, 413)])
def test_gzip__of_very_many_members__is_refused(
    client: FlaskClient, members: int, status: int
) -> None:
    body = gzip.compress(json.dumps(ONE).encode()) + gzip.compress(b"") * (members - 1)
    assert post_raw(client, body, **{"Content-Encoding": "gzip"}).status_code == status


@pytest.mark.parametrize(("over", "status"), [(0, 200), (1, 413), (9, 413)])
def test_body__of_no_announced_length__may_have_as_many_bytes_as_others(
    over: int, status: int, make_app: Callable[..., Flask]
) -> None:
    class Counted(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            read.append(super().read(size))
            return read[-1]

    read: list[bytes] = []
    body = json.dumps(ONE).encode()
    client = caller(make_app(max_body_bytes=len(body)))
    reply = client.post(
        COHORT_PATH,
        input_stream=Counted(body + b" " * over),
        content_type="application/json",
        environ_overrides={"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked"},
    )
    assert reply.status_code == status
    assert sum(map(len, read)) <= len(body) + 1


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/vnd.x+json",
        *(f"application/json; charset={name}" for name in ("UTF-8", "utf8", "us-ascii", "ascii")),
    ],
)
def test_content_type__json_in_utf8__is_taken(client: FlaskClient, content_type: str) -> None:
    reply = post_raw(client, json.dumps(ONE).encode(), **{"Content-Type": content_type})
    assert reply.status_code == 200


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "",
        "application/x-www-form-urlencoded",
        "text/vnd.x+json",
        "application/json; charset=latin-1",
        "application/json; charset=nonsense",
    ],
)
def test_content_type__anything_else__is_415(
    client: FlaskClient, content_type: str, nothing_written: None
) -> None:
    reply = post_raw(client, json.dumps(ONE).encode(), **{"Content-Type": content_type})
    assert_problem(reply, 415, "unsupported_media_type")


def test_content_encoding__not_gzip__is_415(client: FlaskClient, nothing_written: None) -> None:
    reply = post_raw(client, b"x", **{"Content-Encoding": "br"})
    assert_problem(reply, 415, "unsupported_media_type")
    assert reply.headers["Accept-Encoding"] == "gzip"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{'batch': []}",
        b"\xff\xfe",
        b'{"userId": "\xed\xa0\x80"}',
        b'{"userId": "\\ud800"}',
        b'{"n": NaN}',
        b'{"n": 1e999}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
    ],
)
def test_body__not_json_in_utf8__is_400(
    client: FlaskClient, body: bytes, nothing_written: None
) -> None:
    assert_problem(post_raw(client, body), 400, "invalid_json")


@pytest.mark.parametrize("body", [b"[]", b"1", b'"batch"', b"null"])
def test_body__json_but_no_object__is_400(
    client: FlaskClient, body: bytes, nothing_written: None
) -> None:
    assert_problem(post_raw(client, body), 400, "invalid_payload")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"not gzip", "invalid_encoding"),
        (gzip.compress(b"{}", mtime=0)[:-4], "invalid_encoding"),
        (gzip.compress(b"{}", mtime=0) + b"x", "invalid_encoding"),
        (zlib.compress(b"{}"), "invalid_encoding"),
        (b"", "invalid_json"),
    ],
)
def test_gzip__broken__is_400(
    client: FlaskClient, body: bytes, reason: str, nothing_written: None
) -> None:
    assert_problem(post_raw(client, body, **{"Content-Encoding": "gzip"}), 400, reason)


def test_body__over_the_limit__is_413_before_and_after_decompression(
    make_app: Callable[..., Flask], nothing_written: None
) -> None:
    client = caller(make_app(max_body_bytes=2048))
    fits = json.dumps(identify("u", TRAIT, True, pad="x" * 1000)).encode()
    fits += b" " * (2048 - len(fits))
    assert_problem(post_raw(client, fits + b" "), 413, "body_too_large")
    bomb = gzip.compress(b" " * 50_000_000)
    for body in (bomb, gzip.compress(fits) + gzip.compress(b" "), gzip.compress(fits + b" ")):
        reply = post_raw(client, body, **{"Content-Encoding": "gzip"})
        assert_problem(reply, 413, "body_too_large")


def test_body__of_exactly_the_limit__is_taken(make_app: Callable[..., Flask]) -> None:
    client = caller(make_app(max_body_bytes=2048))
    body = json.dumps(ONE).encode()
    body += b" " * (2048 - len(body))
    assert post_raw(client, body).status_code == 200
    for packed in (
        gzip.compress(body),
        gzip.compress(body[:1000]) + gzip.compress(body[1000:]),
        gzip.compress(body) + gzip.compress(b""),
    ):
        reply = post_raw(client, packed, **{"Content-Encoding": "gzip"})
        assert reply.status_code == 200


TEXTS = ["", "\\", '"', '\\"', '"\\', "\\\\", '\\"\\', "x" * 65_535, "x" * 65_534 + '"']


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_body__of_too_many_values__is_413_unless_they_are_text(
    client: FlaskClient, text: str
) -> None:
    """Whatever texts come before the values, or are around what only looks like values."""
    many = json.dumps({"batch": [], "x": [text, *[{}] * 170_000]}, separators=(",", ":"))
    assert_problem(post_raw(client, many.encode()), 413, "body_too_large")
    one = json.dumps({"batch": [], "x": text + ",[{" * 60_000 + text})
    assert post_raw(client, one.encode()).status_code == 200


def test_batch__over_the_limit_of_users__is_400_and_writes_nothing(
    make_app: Callable[..., Flask], nothing_written: None
) -> None:
    client = caller(make_app(max_batch_users=2))
    problem = assert_problem(
        client.post(COHORT_PATH, json=batch(["a", "b", "c"], TRAIT, True)), 400, "invalid_payload"
    )
    assert problem["errors"] == [{"place": "batch", "message": "Must hold at most 2 users."}]


def test_batch__with_bad_items__names_each_place_and_writes_nothing(
    client: FlaskClient, nothing_written: None
) -> None:
    items = batch(["a", "b", "c", "d"], TRAIT, True)["batch"]
    items[1]["traits"] = {TRAIT: "true"}
    items[3] = {"type": "track"}
    problem = assert_problem(
        client.post(COHORT_PATH, json={"batch": items}), 400, "invalid_payload"
    )
    assert [e["place"] for e in problem["errors"]] == [
        f"batch.1.traits.{TRAIT}",
        "batch.3.type",
        "batch.3.traits",
    ]


def test_batch__all_bad__tells_at_most_fifty(client: FlaskClient, nothing_written: None) -> None:
    reply = client.post(COHORT_PATH, json={"batch": [{}] * 1000})
    assert len(assert_problem(reply, 400, "invalid_payload")["errors"]) == 50


def test_single__bad__names_each_place(client: FlaskClient, nothing_written: None) -> None:
    reply = client.post(COHORT_PATH, json={"type": "identify", "userId": "a\0", "traits": {"": 1}})
    assert [e["place"] for e in assert_problem(reply, 400, "invalid_payload")["errors"]] == [
        "traits.",
        "traits.",
    ]


class TestKnownUsersOnly:
    @pytest.fixture
    def http(self, make_app: Callable[..., Flask]) -> FlaskClient:
        app = make_app(user_policy="known", store_partitions=2)
        assert services(app).store.registered_users.add(APP, ["known1", "known2"]) == 2
        return caller(app)

    def test_known__all_of_them__are_applied(self, http: FlaskClient) -> None:
        reply = http.post(COHORT_PATH, json=batch(["known1", "known2"], TRAIT, True))
        assert reply.json == {"accepted": 2, "changed": 2, "rejected": 0, "errors": []}

    def test_known__some_of_them__are_applied_and_the_others_reported(
        self, http: FlaskClient, redis_client: redis.Redis
    ) -> None:
        reply = http.post(COHORT_PATH, json=batch(["x", "known1", "y"], TRAIT, True))
        assert reply.status_code == 200
        assert {k: reply.json[k] for k in ("accepted", "changed", "rejected")} == {
            "accepted": 1,
            "changed": 1,
            "rejected": 2,
        }
        assert [(e["place"], e["reason"]) for e in reply.json["errors"]] == [
            ("batch.0.userId", "unknown_user"),
            ("batch.2.userId", "unknown_user"),
        ]
        assert len(redis_client.keys("cohorts:{shop:*:user:*")) == 1

    @pytest.mark.parametrize("body", [identify("x", TRAIT, True), batch(["x", "y"], TRAIT, False)])
    def test_known__none_of_them__is_404(
        self, http: FlaskClient, body: dict, redis_client: redis.Redis
    ) -> None:
        assert_problem(http.post(COHORT_PATH, json=body), 404, "unknown_user")
        assert redis_client.keys("cohorts:{shop:*:user:*") == []

    @pytest.mark.parametrize("users", [["erased", "x"], ["x", "erased"]])
    def test_known__none_of_them_and_one_erased__is_404_in_any_order(
        self, http: FlaskClient, users: list[str]
    ) -> None:
        services(http.application).store.erasure.erase(APP, "erased", suppress=True)
        body = batch(users, TRAIT, True)
        assert_problem(http.post(COHORT_PATH, json=body), 404, "unknown_user")
        assert http.post(COHORT_PATH, json=batch(["erased"], TRAIT, True)).status_code == 200

    @pytest.mark.parametrize("together", [True, False])
    def test_member__who_is_not_registered__leaves_beside_a_cohort_that_stays_closed(
        self, http: FlaskClient, redis_client: redis.Redis, together: bool
    ) -> None:
        """What is skipped is a user's membership of one cohort, not the user."""
        store, other = services(http.application).store, "[Amplitude] Other: 9"
        http.post(COHORT_PATH, json=batch(["known1"], TRAIT, True))
        store.registered_users.remove(APP, ["known1"])
        said = [{other: True, TRAIT: False}] if together else [{other: True}, {TRAIT: False}]
        calls = [{"type": "identify", "userId": "known1", "traits": one} for one in said]
        reply = http.post(COHORT_PATH, json={"batch": calls})
        assert reply.status_code == 200
        assert (reply.json["accepted"], reply.json["changed"]) == (1, 1)
        assert reply.json["rejected"] == len(calls) - 1
        ((place, reason),) = [(e["place"], e["reason"]) for e in reply.json["errors"]]
        assert reason == "unknown_user"
        assert place == (f"batch.0.traits.{other}" if together else "batch.0.userId")
        assert traits(redis_client, APP) == {"known1": {TRAIT: "false"}}

    def test_known__empty_batch__is_fine(self, http: FlaskClient) -> None:
        assert http.post(COHORT_PATH, json={"batch": []}).status_code == 200


class TestCredentials:
    @pytest.fixture
    def http(self, make_app: Callable[..., Flask]) -> FlaskClient:
        return make_app(
            api_keys=(ApiKey(APP, KEY), ApiKey(APP, "second"), ApiKey("other", "third")),
            read_api_keys=(ApiKey(APP, "reader"),),
            admin_api_keys=(ApiKey(APP, "boss"),),
        ).test_client()

    @pytest.mark.parametrize(
        "headers",
        [
            {"api_key": KEY},
            {"api_key": "second", "app_id": APP},
            {"Authorization": f"Bearer {KEY}"},
            {"Authorization": f"bearer {KEY}", "app_id": APP},
            {"api_key": "boss"},
        ],
    )
    def test_good_key__in_every_form__is_let_in(self, http: FlaskClient, headers: dict) -> None:
        assert http.post(COHORT_PATH, json=ONE, headers=headers).status_code == 200

    @pytest.mark.parametrize("password", ["", "ignored"])
    def test_basic__key_as_username__ignores_the_password(
        self, http: FlaskClient, password: str
    ) -> None:
        assert http.post(COHORT_PATH, json=ONE, auth=(KEY, password)).status_code == 200

    @pytest.mark.parametrize(
        ("headers", "reason"),
        [
            ({}, "missing_credentials"),
            ({"app_id": APP}, "missing_credentials"),
            ({"api_key": ""}, "missing_credentials"),
            ({"Authorization": "Digest x"}, "missing_credentials"),
            ({"Authorization": f'Digest username="{KEY}"'}, "missing_credentials"),
            ({"Authorization": f"Token {KEY}"}, "missing_credentials"),
            ({"api_key": "wrong"}, "invalid_credentials"),
            ({"api_key": KEY.upper()}, "invalid_credentials"),
            ({"Authorization": "Basic !!!"}, "missing_credentials"),
            ({"Authorization": "Bearer wrong"}, "invalid_credentials"),
            ({"api_key": KEY, "app_id": "other"}, "invalid_credentials"),
            ({"api_key": KEY, "app_id": ""}, "invalid_credentials"),
        ],
    )
    def test_bad_credentials__are_401_and_write_nothing(
        self, http: FlaskClient, headers: dict, reason: str, nothing_written: None
    ) -> None:
        reply = http.post(COHORT_PATH, json=ONE, headers=headers)
        assert_problem(reply, 401, reason)
        assert reply.headers["WWW-Authenticate"].startswith("Basic ")
        assert KEY not in reply.text

    def test_key_of_another_scope__is_403(self, http: FlaskClient, nothing_written: None) -> None:
        reply = http.post(COHORT_PATH, json=ONE, headers={"api_key": "reader"})
        assert_problem(reply, 403, "missing_scope")

    def test_apps__write_apart(self, http: FlaskClient, redis_client: redis.Redis) -> None:
        http.post(COHORT_PATH, json=ONE, headers={"api_key": "third"})
        assert redis_client.keys("*user:u1") == ["cohorts:{other}:user:u1"]

    def test_bad_key__with_a_bad_body__is_401_not_400(self, http: FlaskClient) -> None:
        assert http.post(COHORT_PATH, data=b"{", headers={"api_key": "no"}).status_code == 401

    def test_no_such_path_or_method__is_a_problem_document(self, http: FlaskClient) -> None:
        reply = http.get("/nothing")
        assert_problem(reply, 404, "not_found")
        assert "/docs" in reply.json["detail"]
        reply = http.get(COHORT_PATH)
        assert_problem(reply, 405, "method_not_allowed")
        assert "POST" in reply.headers["Allow"]
        assert reply.json["detail"] == "This path accepts POST, not GET."


class TestLimits:
    def rate(self, text: str):
        return Settings.from_environ({"RATE_LIMIT": text}).rate_limit

    def test_key__over_its_limit__is_429_and_others_are_not(
        self, make_app: Callable[..., Flask]
    ) -> None:
        app = make_app(
            rate_limit=self.rate("3/hour"), api_keys=(ApiKey(APP, KEY), ApiKey(APP, "second"))
        )
        replies = [caller(app).post(COHORT_PATH, json=ONE) for _ in range(4)]
        assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
        assert_problem(replies[3], 429, "rate_limited")
        assert 1 <= int(replies[3].headers["Retry-After"]) <= 3600
        assert caller(app, "second").post(COHORT_PATH, json=ONE).status_code == 200

    def test_limit__is_counted_together_by_all_processes(
        self, make_app: Callable[..., Flask]
    ) -> None:
        apps = [make_app(rate_limit=self.rate("2/hour")) for _ in range(3)]
        assert [caller(app).post(COHORT_PATH, json=ONE).status_code for app in apps] == [
            200,
            200,
            429,
        ]

    def test_failed_credentials__are_limited_by_address_and_good_ones_pass(
        self, make_app: Callable[..., Flask]
    ) -> None:
        app = make_app(auth_failure_rate_limit=self.rate("2/hour"))
        bad = [caller(app, "wrong").post(COHORT_PATH, json=ONE) for _ in range(3)]
        assert [reply.status_code for reply in bad] == [401, 401, 429]
        elsewhere = caller(app, "wrong")
        elsewhere.environ_base["REMOTE_ADDR"] = "192.0.2.7"
        assert elsewhere.post(COHORT_PATH, json=ONE).status_code == 401
        assert caller(app).post(COHORT_PATH, json=ONE).status_code == 200

    @pytest.mark.parametrize(
        ("first", "second", "together"),
        [
            ("2001:db8::1", "2001:db8::ffff:2", True),
            ("2001:db8::1", "2001:db8:0:1::1", False),
            ("::ffff:192.0.2.1", "192.0.2.1", True),
            ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
            ("192.0.2.1:4711", "192.0.2.1:4712", True),
            ("192.0.2.1:4711", "192.0.2.1", True),
            ("192.0.2.1:4711", "192.0.2.2:4711", False),
            ("[2001:db8::1]:4711", "[2001:db8::2]:4712", True),
            ("[2001:db8::1]", "2001:db8::2", True),
            ("[2001:db8::1]:4711", "[2001:db8:0:1::1]:4711", False),
            ("unknown", "_hidden", False),
        ],
    )
    def test_failed_credentials__are_counted_by_address_without_port_and_ipv6_by_network(
        self, make_app: Callable[..., Flask], first: str, second: str, together: bool
    ) -> None:
        http = caller(make_app(auth_failure_rate_limit=self.rate("1/hour")), "wrong")
        replies = []
        for address in (first, second):
            http.environ_base["REMOTE_ADDR"] = address
            replies.append(http.post(COHORT_PATH, json=ONE).status_code)
        assert replies == [401, 429 if together else 401]


def test_health__is_open_and_ready_tells_the_stores_time(make_app: Callable[..., Flask]) -> None:
    http = make_app().test_client()
    assert http.get("/healthz").json == {"status": "ok"}
    ready = http.get("/readyz")
    assert (ready.status_code, ready.json["status"]) == (200, "ready")
    assert ready.json["storeMs"] >= 0


def test_store__unreachable__is_503_and_liveness_goes_on(
    make_app: Callable[..., Flask], tmp_path: object
) -> None:
    http = caller(make_app(redis_url=f"unix://{tmp_path}/nobody-listens"))
    for reply in (http.post(COHORT_PATH, json=ONE), http.get("/readyz")):
        assert_problem(reply, 503, "store_unreachable")
        assert int(reply.headers["Retry-After"]) >= 1
    assert http.get("/healthz").status_code == 200


def test_store__bad_credentials_and_unreachable_since_keys_were_read__is_still_401(
    make_app: Callable[..., Flask],
) -> None:
    with running_store() as url:
        app = make_app(redis_url=url, auth_failure_rate_limit=Settings().auth_failure_rate_limit)
        services(app).keyring.refresh()
    assert_problem(caller(app, "wrong").post(COHORT_PATH, json=ONE), 401, "invalid_credentials")


def test_store__full__is_503_and_nothing_is_half_written(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    redis_client.config_set("maxmemory", "1")
    try:
        assert_problem(client.post(COHORT_PATH, json=ONE), 503, "store_full")
    finally:
        redis_client.config_set("maxmemory", "0")
    assert redis_client.keys("cohorts:{*") == []
    assert client.post(COHORT_PATH, json=ONE).json["changed"] == 1


def test_store__key_of_another_type__is_503_and_the_other_users_are_written(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    redis_client.set("cohorts:{shop}:user:bad", "someone else's")
    reply = client.post(COHORT_PATH, json=batch(["good", "bad"], TRAIT, True))
    assert_problem(reply, 503, "store_misconfigured")
    assert redis_client.hgetall("cohorts:{shop}:user:good") == {TRAIT: "true"}
    assert redis_client.zrange("cohorts:{shop}:cohort:1:members", 0, -1) == ["good"]


def test_store__other_number_of_partitions_than_the_data__is_refused(
    make_app: Callable[..., Flask],
) -> None:
    assert caller(make_app(store_partitions=2)).post(COHORT_PATH, json=ONE).status_code == 200
    other = caller(make_app(store_partitions=4))
    for reply in (other.post(COHORT_PATH, json=ONE), other.get("/readyz")):
        problem = assert_problem(reply, 503, "store_misconfigured")
        assert problem["detail"] == "STORE_PARTITIONS is 4, but the stored data has 2."


def test_request__of_several_calls__failing_half_way__is_503_and_completed_by_the_retry(
    make_app: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    app, ids = make_app(store_partitions=2), user_ids(100)
    http, body, keys = caller(app), batch(ids, "n: 1", True), services(app).store.keys
    broken = keys.changes(APP, 1 - keys.partition(ids[0]))  # not that of the first call
    assert http.post(COHORT_PATH, json=identify(ids[0], "n: 1", True)).status_code == 200
    redis_client.set(broken, "no stream")
    assert http.post(COHORT_PATH, json=body).status_code == 503
    written = len(traits(redis_client, APP))
    assert 1 < written < 100
    redis_client.delete(broken)
    reply = http.post(COHORT_PATH, json=body)
    assert (reply.status_code, reply.json["changed"]) == (200, 100 - written)
    told = [transition.user for transition in transitions(redis_client, APP)]
    assert sorted(told) == sorted(ids)
