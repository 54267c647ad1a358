"""Reading users and cohorts' members over HTTP."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest
import redis
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.cohorts import Cohort, MembershipChange
from app.services import services
from app.settings import Settings
from app.store import Store, StoreError, connect
from app.store.lookups import Lookups
from simulator.payloads import COHORT_PATH, identify
from tests.integration.conftest import APP, KEY, caller
from tests.integration.web.api import read_api
from tests.integration.web.api.read_api import KEYS, OTHER_KEY, READ_KEY, Reader, say

ONE, TWO, NO_ID = "[Amplitude] one: 1", "two: b: 2", "no id"
NO_ID_ID = "name-745677f0e14bf1bdd94d58d8"


app, store, reader = read_api.app, read_api.store, read_api.reader


HARD_IDS = [
    "a@b.c",
    "a/b",
    "/a",
    "a/",
    "a//b",
    "//",
    "..",
    ".",
    "../../admin",
    "a+b",
    "a b",
    " ",
    "100%",
    "%2F",
    "é",
    "🎉",
    "query",
    "a?b#c",
    "a;b=c",
    "'\"\\",
    "line\nbreak",
    "members",
    "\ufffd",
    "x" * 1024,
]


trait_names = st.text(
    st.one_of(
        st.sampled_from(": \t\x1f\x85\xa0\u3000a1~!"),
        st.characters(exclude_characters="\0", codec="utf-8"),
    ),
    min_size=1,
    max_size=100,
)


class TestUser:
    @pytest.mark.parametrize(
        ("path", "user"),
        [("a", "a"), ("a/", "a"), ("a//", "a/"), ("a///", "a//"), ("a%2F", "a/"), ("a%2F/", "a/")],
    )
    def test_slash_at_the_end__is_part_of_the_id_except_one(
        self, store: Store, reader: Reader, path: str, user: str
    ) -> None:
        for n, known in enumerate(("a", "a/", "a//")):
            say(store, ONE, True, [known], 1000 + n)
        found = reader.get(f"/api/v1/users/{path}").json
        assert found["userId"] == user
        assert found["cohorts"][0]["since"] == 1000 + len(user) - 1
        member = reader.get(f"/api/v1/cohorts/1/members/{path}").json
        assert (member["userId"], member["member"]) == (user, True)

    def test_user__traits_and_cohorts__are_told_with_since(
        self, store: Store, reader: Reader, redis_client: redis.Redis
    ) -> None:
        say(store, ONE, True, ["u"], 1000)
        say(store, TWO, True, ["u"], 2000)
        say(store, NO_ID, True, ["u"], 3000)
        say(store, "out: 4", False, ["u"])
        assert reader.get("/api/v1/users/u").json == {
            "userId": "u",
            "traits": {ONE: True, TWO: True, NO_ID: True, "out: 4": False},
            "cohorts": [
                {"id": "1", "trait": ONE, "since": 1000},
                {"id": "2", "trait": TWO, "since": 2000},
                {"id": NO_ID_ID, "trait": NO_ID, "since": 3000},
            ],
        }

    def test_user__never_heard_of__is_an_answer_and_no_error(self, reader: Reader) -> None:
        told = {"userId": "nobody", "traits": {}, "cohorts": []}
        assert reader.get("/api/v1/users/nobody").json == told

    @pytest.mark.parametrize("user_id", HARD_IDS)
    def test_user_id__of_every_kind__is_read_from_the_path(
        self, store: Store, reader: Reader, user_id: str
    ) -> None:
        say(store, ONE, True, [user_id], 1000)
        told = reader.get(f"/api/v1/users/{quote(user_id, safe='')}").json
        assert (told["userId"], [c["id"] for c in told["cohorts"]]) == (user_id, ["1"])
        path = f"/api/v1/cohorts/1/members/{quote(user_id, safe='')}"
        assert reader.get(path).json["since"] == 1000

    def test_slash__in_a_user_id__may_be_sent_as_it_is(self, store: Store, reader: Reader) -> None:
        say(store, ONE, True, ["a/b//c"], 1000)
        assert reader.get("/api/v1/users/a/b//c").json["traits"] == {ONE: True}
        assert reader.get("/api/v1/users/a/b//c/").json["traits"] == {ONE: True}

    def test_slash__that_is_one_too_many__is_no_redirect(self, reader: Reader) -> None:
        assert reader.get("/api/v1//users/ann", 404) == "not_found"

    @pytest.mark.parametrize("user_id", ["%00", "%FF", "%ED%A0%80", "x" * 1025])
    def test_user_id__that_none_can_be__is_400(self, reader: Reader, user_id: str) -> None:
        assert reader.get(f"/api/v1/users/{user_id}", 400) == "invalid_parameter"

    @given(trait=trait_names)
    def test_trait_name__any__gives_the_cohort_that_ingest_gave_it(
        self, trait: str, store_url: str
    ) -> None:
        store = Store(connect(Settings(redis_url=store_url)), prefix="any")
        say(store, trait, True, [trait], 1000)
        found = [m.cohort.id for m in store.lookups.user(APP, trait).memberships]
        assert found == [Cohort.from_trait(trait).id]

    def test_etag__of_what_the_caller_has__is_304_until_it_changes(
        self, store: Store, reader: Reader
    ) -> None:
        say(store, ONE, True, ["u"])
        tag = reader.get("/api/v1/users/u").headers["ETag"]
        same = {"If-None-Match": tag}
        assert reader.get("/api/v1/users/u", 304, headers=same).data == b""
        say(store, ONE, False, ["u"])
        assert reader.get("/api/v1/users/u", headers=same).headers["ETag"] != tag

    def test_other_app__same_user__sees_nothing(self, app: Flask, store: Store) -> None:
        say(store, ONE, True, ["u"])
        other = Reader(app, OTHER_KEY)
        assert other.get("/api/v1/users/u").json["traits"] == {}
        for path in ("1", "1/members", "1/members/u", "1/members.csv", "1/members.ndjson"):
            assert other.get(f"/api/v1/cohorts/{path}", 404) == "unknown_cohort"
        assert other.get("/api/v1/cohorts").json["cohorts"] == []
        assert other.get("/api/v1/changes").json["changes"] == []

    def test_ingest_key__may_not_read(self, app: Flask) -> None:
        for path in ("users/u", "cohorts", "cohorts/1/members", "changes", "changes/stream"):
            reply = caller(app, KEY).get(f"/api/v1/{path}")
            assert (reply.status_code, reply.json["reason"]) == (403, "missing_scope")


@pytest.fixture
def full_store(redis_client: redis.Redis) -> Iterator[Callable[[], None]]:
    yield lambda: redis_client.config_set("maxmemory", 1) and None
    redis_client.config_set("maxmemory", 0)


class TestStore:
    def test_store_full__reading_goes_on(
        self, make_app: Callable[..., Flask], full_store: Callable[[], None]
    ) -> None:
        app = make_app(rate_limit=Settings().rate_limit, **KEYS)
        say(services(app).store, ONE, True, ["u"], 1000)
        full_store()
        for path in ("users/u", "cohorts", "cohorts/1", "cohorts/1/members", "changes"):
            assert Reader(app).get(f"/api/v1/{path}").status_code == 200
        sent = caller(app, KEY).post(COHORT_PATH, json=identify("u", ONE, False))
        assert (sent.status_code, sent.json["reason"]) == (503, "store_full")

    def test_store__laid_out_otherwise__is_503_and_no_wrong_answer(
        self, store: Store, make_app: Callable[..., Flask]
    ) -> None:
        say(store, ONE, True, ["u"], 1000)
        other = Reader(make_app(store_partitions=7, **KEYS))
        for path in ("users/u", "cohorts", "cohorts/1", "cohorts/1/members", "changes"):
            assert other.get(f"/api/v1/{path}", 503) == "store_misconfigured"


class TestManyUsers:
    def test_query__tells_all_in_the_order_asked_for(self, store: Store, reader: Reader) -> None:
        ids = [f"u{n}" for n in range(1000)]
        say(store, ONE, True, ids[::2], 1000)
        say(store, NO_ID, True, ids[::3], 2000)
        asked = [*ids[:0:-1], "u7"]
        told = reader.send("POST", "/api/v1/users/query", json={"userIds": asked}).json["users"]
        assert [user["userId"] for user in told] == asked[:-1]  # each once
        for user in told[::37]:
            assert user == reader.get(f"/api/v1/users/{user['userId']}").json

    def test_query__users_of_many_traits__are_read_in_parts(
        self, store: Store, reader: Reader
    ) -> None:
        for n in range(900):
            say(store, f"n: {n}", True, ["a", "b", "c", "d"], 1000 + n)
        told = reader.send("POST", "/api/v1/users/query", json={"userIds": ["a", "x", "d", "b"]})
        assert [len(user["cohorts"]) for user in told.json["users"]] == [900, 0, 900, 900]

    def test_query__users_of_very_many_traits__are_told_among_the_others(
        self, store: Store, reader: Reader
    ) -> None:
        cohorts = [Cohort.from_trait(f"n: {n}") for n in range(1500)]
        many = [MembershipChange(cohort, True, ["b", "c"]) for cohort in cohorts]
        store.memberships.apply(APP, many, source="test")
        say(store, ONE, True, ["a", "d"], 1000)
        told = reader.send("POST", "/api/v1/users/query", json={"userIds": list("abxcbd")})
        assert [user["userId"] for user in told.json["users"]] == list("abxcd")
        assert [len(user["cohorts"]) for user in told.json["users"]] == [1, 1500, 0, 1500, 1]

    def test_query__of_nobody__tells_nobody(self, reader: Reader) -> None:
        told = reader.send("POST", "/api/v1/users/query", json={"userIds": []})
        assert told.json == {"users": []}

    @pytest.mark.parametrize(
        "body",
        [
            *({}, {"userIds": "u"}, {"userIds": ["u"] * 1001}),
            *({"userIds": [bad]} for bad in ("", " ", None, 1.0, True)),
        ],
    )
    def test_query__malformed__is_400(self, reader: Reader, body: dict) -> None:
        assert reader.send("POST", "/api/v1/users/query", 400, json=body) == "invalid_payload"


class TestMembership:
    def test_membership__of_member_and_other__is_told(self, store: Store, reader: Reader) -> None:
        say(store, ONE, True, ["in"], 1000)
        assert reader.get("/api/v1/cohorts/1/members/in").json == {
            "userId": "in",
            "cohortId": "1",
            "member": True,
            "since": 1000,
        }
        told = reader.get("/api/v1/cohorts/1/members/out").json
        assert (told["member"], told["since"]) == (False, None)

    def test_cohort__never_received__is_404(self, reader: Reader) -> None:
        for path in ("", "/members", "/members/u", "/members.csv", "/members.ndjson"):
            assert reader.get(f"/api/v1/cohorts/x{path}", 404) == "unknown_cohort"

    @pytest.mark.parametrize("cohort_id", ["a/b", "x/members", "100%", "é b", "..", "1/members/u"])
    def test_cohort_id__of_every_kind__is_one_encoded_segment(
        self, store: Store, reader: Reader, cohort_id: str
    ) -> None:
        say(store, f"n: {cohort_id}", True, ["u"], 1000)
        base = f"/api/v1/cohorts/{quote(cohort_id, safe='')}"
        assert reader.get(base).json["id"] == cohort_id
        assert reader.get(f"{base}/members/u").json["since"] == 1000
        assert reader.get(f"{base}/members").json["members"] == [{"userId": "u", "since": 1000}]
        assert reader.get(f"{base}/members.ndjson").data == b'{"userId":"u","since":1000}\n'


class TestMembersAmong:
    PATH = "/api/v1/cohorts/1/members/query"

    def test_query__of_many_users__returns_the_members_among_them_as_asked(
        self, store: Store, reader: Reader
    ) -> None:
        ids = [f"u{n}" for n in range(998)]
        say(store, ONE, True, ids[::2], 1000)
        say(store, ONE, False, ids[::4], 2000)
        asked = [*ids[::-1], "u2", "u2"]
        told = reader.send("POST", self.PATH, json={"userIds": asked}).json
        members = [{"userId": user, "since": 1000} for user in ids[::-1] if int(user[1:]) % 4 == 2]
        assert told == {"cohortId": "1", "members": members}

    def test_query__of_more_users_than_one_call_reads__has_all(
        self, store: Store, make_app: Callable[..., Flask]
    ) -> None:
        many = Reader(
            make_app(store_partitions=store.keys.partitions, max_query_users=8000, **KEYS)
        )
        ids = [f"u{n}" for n in range(8000)]
        say(store, ONE, True, ids)
        told = many.send("POST", self.PATH, json={"userIds": ids}).json["members"]
        assert [member["userId"] for member in told] == ids

    @pytest.mark.parametrize("user_id", [user for user in HARD_IDS if user.strip()])
    def test_query__user_id_of_every_kind__is_found(
        self, store: Store, reader: Reader, user_id: str
    ) -> None:
        say(store, ONE, True, [user_id], 1000)
        told = reader.send("POST", self.PATH, json={"userIds": [user_id]}).json["members"]
        assert told == [{"userId": user_id, "since": 1000}]

    @pytest.mark.parametrize("user_ids", [[], ["u"]])
    def test_query__cohort_never_received__is_404_and_one_without_members_is_not(
        self, app: Flask, store: Store, reader: Reader, user_ids: list[str]
    ) -> None:
        assert reader.send("POST", self.PATH, 404, json={"userIds": user_ids}) == "unknown_cohort"
        say(store, ONE, False, ["u"])
        told = reader.send("POST", self.PATH, json={"userIds": user_ids}).json
        assert told == {"cohortId": "1", "members": []}
        other = Reader(app, OTHER_KEY)
        assert other.send("POST", self.PATH, 404, json={"userIds": user_ids}) == "unknown_cohort"

    @pytest.mark.parametrize(
        "body",
        [{}, {"userIds": "u"}, {"userIds": [1.5]}, {"userIds": [""]}, {"userIds": ["u"] * 1001}],
    )
    def test_query__malformed__is_400(self, store: Store, reader: Reader, body: dict) -> None:
        say(store, ONE, True, ["u"])
        assert reader.send("POST", self.PATH, 400, json=body) == "invalid_payload"


class TestMembers:
    def test_pages__by_links__hold_each_member_once_by_since(
        self, store: Store, reader: Reader
    ) -> None:
        ids = [f"u{n:04}" for n in range(500)]
        for n in range(5):
            say(store, ONE, True, ids[n::5], 1000 + n)
        pages = reader.pages("/api/v1/cohorts/1/members?limit=70", "members")
        assert {len(page) for page in pages[:-1]} == {70}
        met = [(member["userId"], member["since"]) for page in pages for member in page]
        assert sorted(met) == [(user, 1000 + int(user[1:]) % 5) for user in ids]
        if store.keys.partitions == 1:
            assert [since for _, since in met] == sorted(since for _, since in met)

    def test_members__of_many_calls_of_one_time__are_told_whole_ms(
        self, store: Store, reader: Reader
    ) -> None:
        ids = [f"u{n}" for n in range(40)]
        for user_id in ids:
            say(store, ONE, True, [user_id], 1000)
            say(store, NO_ID, True, [user_id], 1000)
        shown = [{"userId": user_id, "since": 1000} for user_id in ids]
        for query in ("limit=1", "limit=7", "limit=7&entered_since=1000"):
            pages = reader.pages(f"/api/v1/cohorts/1/members?{query}", "members")
            met = [member for page in pages for member in page]
            assert sorted(met, key=str) == sorted(shown, key=str)
        lines = reader.get("/api/v1/cohorts/1/members.ndjson").text.splitlines()
        assert sorted(map(json.loads, lines), key=str) == sorted(shown, key=str)
        asked = reader.send("POST", "/api/v1/users/query", json={"userIds": ids}).json["users"]
        assert {cohort["since"] for user in asked for cohort in user["cohorts"]} == {1000}
        assert {len(user["cohorts"]) for user in asked} == {2}
        assert reader.get("/api/v1/cohorts/1/members/u7").json["since"] == 1000

    def test_entered_since__tells_only_who_did(self, store: Store, reader: Reader) -> None:
        for n in range(10):
            say(store, ONE, True, [f"u{n}"], 1000 + n)
        path = "/api/v1/cohorts/1/members?entered_since=1007&limit=2"
        met = [member for page in reader.pages(path, "members") for member in page]
        assert sorted(member["userId"] for member in met) == ["u7", "u8", "u9"]

    @pytest.mark.parametrize(
        "query",
        [
            "limit=0",
            "limit=10001",
            "limit=1_0",
            "limit=x",
            "entered_since=-1",
            "entered_since=1e3",
            "cursor=x",
            "cursor=WyJjIl0",
            "cursor=WyJtIiwwLHRydWUsInUiXQ",  # a boolean for a time
            "cursor=",
            "cursor=é",
        ],
    )
    def test_query__malformed__is_400_with_its_place(
        self, store: Store, reader: Reader, query: str
    ) -> None:
        say(store, ONE, True, ["u"])
        assert reader.get(f"/api/v1/cohorts/1/members?{query}", 400) == "invalid_parameter"

    def test_cursor__of_a_member_who_left__goes_on_at_the_same_place(
        self, store: Store, reader: Reader
    ) -> None:
        ids = [f"u{n:03}" for n in range(100)]
        say(store, ONE, True, ids, 1000)
        first = reader.get("/api/v1/cohorts/1/members?limit=40").json
        met = [member["userId"] for member in first["members"]]
        say(store, ONE, False, met[20:])
        rest = reader.get(f"/api/v1/cohorts/1/members?limit=100&cursor={first['next']}").json
        assert sorted(met + [member["userId"] for member in rest["members"]]) == ids


names = st.text(st.sampled_from("ab\u00e9\U0001f389-_"), min_size=1, max_size=3)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("page"), st.integers(1, 4)),
        st.tuples(st.just("enter"), names),
        st.tuples(st.just("leave"), names),
    ),
    max_size=40,
)


@pytest.mark.parametrize("partitions", [1, 3])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stay=st.sets(names, max_size=12), others=st.sets(names, max_size=6), steps=steps)
def test_paging__while_others_enter_and_leave__meets_each_who_stays_once(
    partitions: int,
    stay: set[str],
    others: set[str],
    steps: list,
    store_url: str,
    redis_client: redis.Redis,
) -> None:
    redis_client.flushall()
    store = Store(connect(Settings(redis_url=store_url)), partitions=partitions)
    others -= stay
    say(store, ONE, True, [*stay, *others], 1000)
    met: list[str] = []
    after = None

    def page(limit: int) -> bool:
        nonlocal after
        members, after = store.lookups.members(APP, "1", after=after, limit=limit)
        met.extend(member.user_id for member in members)
        return after is not None

    going_on = True
    for action, what in steps:
        if action == "page":
            going_on = going_on and page(what)
        elif what not in stay:
            say(store, ONE, action == "enter", [what], 1000)
    while going_on:
        going_on = page(3)
    assert sorted(user for user in met if user in stay) == sorted(stay)


def rows_of(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


class TestExport:
    @pytest.mark.parametrize("ending", ["lost", "deleted", "created again"])
    def test_export__of_a_cohort_that_ends_meanwhile__does_not_end_properly(
        self, app: Flask, store: Store, redis_client: redis.Redis, ending: str
    ) -> None:
        say(store, ONE, True, [f"user-{n:06}" for n in range(2500)], 1000)
        http = caller(app, READ_KEY)
        pieces = iter(http.get("/api/v1/cohorts/1/members.ndjson", buffered=False).response)
        next(pieces)
        if ending == "lost":
            redis_client.flushall()
        else:
            for _ in store.jobs.delete_cohort(APP, "1"):
                pass
        if ending == "created again":
            say(store, ONE, True, ["user-000000"], 1000)
        with pytest.raises(StoreError):
            list(pieces)

    def test_export__of_several_pages__has_every_member_once(
        self, store: Store, reader: Reader
    ) -> None:
        ids = {f"user-{n:06}" for n in range(25_000)}
        listed = sorted(ids)
        for start in range(0, len(listed), 10_000):
            say(store, ONE, True, listed[start : start + 10_000], 1000)
        lines = [
            json.loads(line)
            for line in reader.get("/api/v1/cohorts/1/members.ndjson").data.splitlines()
        ]
        assert len(lines) == 25_000
        assert {line["userId"] for line in lines} == ids
        rows = rows_of(reader.get("/api/v1/cohorts/1/members.csv").text)
        assert rows[0] == ["user_id", "since"]
        assert len(rows) == 25_001
        assert {row[0] for row in rows[1:]} == ids

    def test_csv__hostile_ids__are_no_formulas_and_come_back_whole(
        self, store: Store, reader: Reader
    ) -> None:
        ids = [
            '=HYPERLINK("http://x","y")',
            "+491701",
            "-1",
            "@name",
            "\t=1",
            " =1",
            "\uff1d1",
            "'=1",
            'a"b',
            "a,b",
            "a;=1",
            "a\r\n=1",
            "é🎉",
        ]
        say(store, ONE, True, ids, 1000)
        reply = reader.get("/api/v1/cohorts/1/members.csv")
        assert reply.content_type == "text/csv; charset=utf-8"
        cells = [row[0] for row in rows_of(reply.text)[1:]]
        assert not [cell for cell in cells if cell.strip()[0] in "=+-@\uff1d\uff0b\uff0d\uff20"]
        assert sorted(cell.removeprefix("'") for cell in cells) == sorted(ids)

    @pytest.mark.parametrize("form", ["ndjson", "csv"])
    def test_export__whose_first_page_cannot_be_read__is_503(
        self, store: Store, reader: Reader, redis_client: redis.Redis, form: str
    ) -> None:
        say(store, ONE, True, ["u"], 1000)
        for key in redis_client.scan_iter("cohorts:*:cohort:1:members"):
            redis_client.delete(key)
            redis_client.set(key, "of another type, so that the store refuses to read it")
        assert reader.get(f"/api/v1/cohorts/1/members.{form}", 503) == "store_error"

    def test_export__of_an_empty_cohort__is_empty(self, store: Store, reader: Reader) -> None:
        say(store, ONE, False, ["u"])
        assert reader.get("/api/v1/cohorts/1/members.ndjson").data == b""
        assert reader.get("/api/v1/cohorts/1/members.csv").data == b'"user_id","since"\r\n'


def test_user__of_very_many_cohorts__is_read_whole_and_in_short_calls(
    make_app: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    app = make_app(**KEYS)
    traits = {f"Cohort {n}: c{n}": n % 3 > 0 for n in range(4000)}
    traits["no colon"] = traits["n: é"] = True
    sent = {"type": "identify", "userId": "u", "traits": traits}
    assert caller(app).post(COHORT_PATH, json=sent).status_code == 200
    redis_client.config_resetstat()
    reader = caller(app, READ_KEY)
    told = reader.get("/api/v1/users/u").json
    calls = redis_client.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert told["traits"] == traits
    assert sorted(cohort["trait"] for cohort in told["cohorts"]) == sorted(
        name for name, member in traits.items() if member
    )
    assert calls > 8
    both = reader.post("/api/v1/users/query", json={"userIds": ["nobody", "u"]}).json["users"]
    assert both[1] == told
    pauses: list[None] = []
    store = services(app).store
    Lookups(store._client, store.keys, lambda: pauses.append(None)).user(APP, "u")
    assert len(pauses) >= 8  # other requests have their turns, too
