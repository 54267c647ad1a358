"""The commands, in this process and on a real store."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import redis
from click.testing import Result
from flask import Flask

from app.cohorts import Cohort, IncompleteReason, MembershipChange, VerifiedBy
from app.server.background import Background
from app.services import services
from app.store import ResyncPlace, Store, StoreError
from tests.integration.store_contents import members, traits
from tests.support.effort import PARTITIONS

APP = "shop"
ONE, TWO = "[Amplitude] one: 1", "[Amplitude] two: 2"
USERS = [f"u{n}" for n in range(20)]

Run = Callable[..., Result]


@pytest.fixture(params=PARTITIONS)
def flask_app(request: pytest.FixtureRequest, make_app: Callable[..., Flask]) -> Flask:
    return make_app(store_partitions=request.param)


@pytest.fixture
def store(flask_app: Flask) -> Store:
    """A store with two cohorts of one app."""
    store: Store = services(flask_app).store
    say(store, ONE, True, *USERS)
    say(store, ONE, False, *USERS[:5])
    say(store, TWO, True, *USERS[:2])
    return store


@pytest.fixture
def run(flask_app: Flask) -> Run:
    """Run a command, given as words."""
    runner = flask_app.test_cli_runner()

    def run(*words: str, input: str | bytes | None = None) -> Result:
        result = runner.invoke(args=words, input=input)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def say(store: Store, trait: str, member: bool, *users: str, app: str = APP) -> None:
    change = MembershipChange(Cohort.from_trait(trait), member, list(users))
    store.memberships.apply(app, [change], source="identify")


class TestApp:
    def test_app_id__where_there_is_one__may_be_left_out(self, store: Store, run: Run) -> None:
        assert run("cohorts", "show", "1").exit_code == 0
        assert run("cohorts", "show", "1", "--app-id", APP).exit_code == 0

    @pytest.mark.parametrize(
        "words",
        [
            ("cohorts", "list"),
            ("cohorts", "show", "1"),
            ("cohorts", "cadence", "1"),
            ("cohorts", "delete", "1", "--yes"),
            ("users", "register", "-"),
            ("users", "unregister", "-"),
            ("users", "erase", "u1", "--yes"),
            ("users", "unsuppress", "u1"),
            ("users", "show", "u1"),
        ],
    )
    def test_app_id__left_out_where_there_are_two__is_wrong_usage_and_names_them(
        self, words: tuple[str, ...], store: Store, run: Run, redis_client: redis.Redis
    ) -> None:
        say(store, ONE, True, "u1", app="staging")
        before = members(redis_client, APP)
        result = run(*words, input="")
        assert result.exit_code == 2
        assert "Known apps: shop, staging." in result.stderr
        assert result.stdout == ""
        assert members(redis_client, APP) == before

    def test_app_id__unknown_or_not_an_app_id__is_wrong_usage(self, store: Store, run: Run) -> None:
        result = run("cohorts", "list", "--app-id", "shpo")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "Unknown app: shpo. Known apps: shop." in result.stderr
        assert run("users", "register", "-", "--app-id", "a/b", input="u1").exit_code == 2

    def test_app_id__on_an_empty_store__says_so(self, run: Run) -> None:
        result = run("cohorts", "list")
        assert result.exit_code == 2
        assert "The store is empty." in result.stderr

    def test_commands__about_one_app__leave_the_others_alone(
        self, store: Store, run: Run, redis_client: redis.Redis
    ) -> None:
        say(store, ONE, True, *USERS, app="staging")
        assert run("cohorts", "delete", "1", "--app-id", APP, "--yes").exit_code == 0
        assert run("users", "erase", "u1", "--app-id", APP, "--yes").exit_code == 0
        assert members(redis_client, "staging") == {"1": set(USERS)}
        assert set(traits(redis_client, "staging")) == set(USERS)


class TestCohorts:
    def test_list__prints_a_line_for_each_cohort(self, store: Store, run: Run) -> None:
        result = run("cohorts", "list")
        head, one, two = result.stdout.splitlines()
        assert head.split() == [
            *("ID", "NAME", "MEMBERS", "ENTERED", "LEFT", "FIRST", "LAST", "SOURCES", "STATUS"),
            *("FRESHNESS", "COMPLETENESS"),
        ]
        assert one.split()[:6] == ["1", "[Amplitude]", "one:", "1", "15", "20"]
        assert one.split()[-4:] == ["identify", "active", "fresh", "unverified"]
        assert two.startswith("2   [Amplitude] two: 2        2        2     0  20")
        assert result.stderr == ""

    def test_list__without_cohorts__has_the_headers(self, store: Store, run: Run) -> None:
        for cohort_id in ("1", "2"):
            run("cohorts", "delete", cohort_id, "--yes")
        assert run("cohorts", "list").stdout.split()[:2] == ["ID", "NAME"]

    def test_list__of_an_incomplete_cohort__says_why(self, store: Store, run: Run) -> None:
        store.completeness.raise_reason(APP, "2", IncompleteReason.SYNC_FAILED)
        assert run("cohorts", "list").stdout.splitlines()[2].endswith("incomplete (sync_failed)")
        one, two = json.loads(run("cohorts", "list", "--json").stdout)
        assert (one["completeness"], one["reasons"]) == ("unverified", [])
        assert (two["freshness"], two["completeness"]) == ("fresh", "incomplete")
        assert two["reasons"] == ["sync_failed"]

    def test_list__as_json__has_every_cohort(self, store: Store, run: Run) -> None:
        changes = [
            MembershipChange(Cohort.from_trait(f"n: c{n:04}"), True, ["u1"]) for n in range(1100)
        ]
        store.memberships.apply(APP, changes, source="list")
        found = json.loads(run("cohorts", "list", "--json").stdout)
        assert len(found) == 1102
        assert found[0]["id"] == "1"
        assert (found[0]["members"], found[0]["entered"], found[0]["left"]) == (15, 20, 5)
        assert found[-1]["trait"] == "n: c1099"
        assert len(run("cohorts", "list").stdout.splitlines()) == 1103

    def test_list__as_json__of_an_app_without_cohorts__is_an_empty_array(self, run: Run) -> None:
        run("users", "register", "-", "--app-id", "fresh", input="u1")
        assert json.loads(run("cohorts", "list", "--json").stdout) == []

    def test_list__of_a_name_with_control_characters__shows_them_escaped(
        self, store: Store, run: Run
    ) -> None:
        say(store, "\x1b[2Jevil\nname: 3", True, "u1")
        result = run("cohorts", "list")
        assert "\x1b" not in result.stdout
        assert r"\x1b[2Jevil\nname: 3" in result.stdout
        assert len(result.stdout.splitlines()) == 4

    def test_show__prints_everything_known(self, store: Store, run: Run) -> None:
        say(store, "[Amplitude] uno: 1", True, "u3")
        lines = run("cohorts", "show", "1").stdout
        assert "name:           [Amplitude] uno: 1\n" in lines
        assert "earlier name:   [Amplitude] one: 1 (until 20" in lines
        assert "members:        16\n" in lines
        assert "status:         renaming\n" in lines
        assert "first seen:     20" in lines
        assert "last received:  20" in lines
        assert "freshness:      fresh\n" in lines
        assert "completeness:   unverified\n" in lines
        shown = json.loads(run("cohorts", "show", "1", "--json").stdout)
        assert (shown["id"], shown["status"]) == ("1", "renaming")
        assert list(shown["earlier_names"]) == [ONE]
        assert (shown["freshness"], shown["completeness"], shown["reasons"]) == (
            "fresh",
            "unverified",
            [],
        )

    def test_show__incomplete_or_verified__says_why(self, store: Store, run: Run) -> None:
        store.completeness.raise_reason(APP, "1", IncompleteReason.SYNC_FAILED)
        shown = run("cohorts", "show", "1").stdout
        assert "completeness:   incomplete (sync_failed)\n" in shown
        store.completeness.verify(APP, "1", VerifiedBy.IMPORT)
        assert "completeness:   verified (by import, 20" in run("cohorts", "show", "1").stdout

    @pytest.mark.parametrize("command", ["show", "cadence", "delete"])
    def test_cohort__unknown__fails_with_one_line(
        self, command: str, store: Store, run: Run
    ) -> None:
        result = run("cohorts", command, "nope")
        assert result.exit_code == 1
        assert result.stderr == "Error: Unknown cohort: nope.\n"

    def test_cadence__set_and_learned_again__is_shown(self, store: Store, run: Run) -> None:
        before = run("cohorts", "cadence", "1").output
        assert "state:          fresh" in before
        assert "cadence:        unknown" in before
        assert "cadence:        3600 s (set)" in run("cohorts", "cadence", "1", "3600").output
        (freshness,) = store.freshness.of(APP, ["1"])
        assert (freshness.cadence_ms, freshness.cadence_is_set) == (3_600_000, True)
        shown = json.loads(run("cohorts", "cadence", "1", "--json").output)
        assert shown == {"state": "fresh", **freshness._asdict()}
        assert run("cohorts", "cadence", "1", "learned").output == before

    @pytest.mark.parametrize(
        "given", ["59", "0", "-60", "1h", "60.0", "31622401", "9" * 5000, "", "Learned"]
    )
    def test_cadence__that_is_none__is_wrong_usage_and_changes_nothing(
        self, store: Store, run: Run, given: str
    ) -> None:
        result = run("cohorts", "cadence", "1", "--", given)
        assert result.exit_code == 2
        assert "must be 60 to 31622400 seconds, or learned" in result.stderr
        assert store.freshness.of(APP, ["1"])[0].cadence_ms is None

    def test_delete__store_full__makes_room(
        self, store: Store, run: Run, redis_client: redis.Redis
    ) -> None:
        redis_client.config_set("maxmemory", 1)
        try:
            with pytest.raises(StoreError, match="memory"):
                say(store, ONE, True, "late")
            result = run("cohorts", "delete", "1", "--yes")
        finally:
            redis_client.config_set("maxmemory", 0)
        assert result.exit_code == 0, result.output
        assert store.registry.find(APP, "1") is None
        assert store.lookups.user(APP, "u1").traits == {TWO: True}
        assert run("store", "check").exit_code == 0

    def test_delete__confirmed__takes_the_cohort_from_all_users(
        self, store: Store, run: Run, redis_client: redis.Redis
    ) -> None:
        result = run("cohorts", "delete", "1", input="y\n")
        assert result.exit_code == 0
        assert result.stdout == "Deleted the cohort 1; 20 users had its trait.\n"
        assert "Delete the cohort [Amplitude] one: 1 with 15 members?" in result.stderr
        assert traits(redis_client, APP) == {u: {TWO: "true"} for u in USERS[:2]}
        assert store.registry.find(APP, "1") is None

    def test_delete__not_confirmed__changes_nothing(self, store: Store, run: Run) -> None:
        for answer in ("n\n", ""):
            result = run("cohorts", "delete", "1", input=answer)
            assert result.exit_code == 1
            assert "Aborted!" in result.stderr
        assert store.registry.find(APP, "1").members == 15

    def test_delete__begun_before__resumes_without_asking(self, store: Store, run: Run) -> None:
        users = [f"user-{n}" for n in range(900)]
        say(store, ONE, True, *users)
        store.jobs.begin_deletion(APP, "1")
        for job in store.jobs.pending():
            store.jobs.step(job)
        left = store.jobs.users_to_delete(APP, "1")
        assert 0 < left < 920
        result = run("cohorts", "delete", "1")
        assert result.exit_code == 0
        assert f"{left} users are left" in result.stderr
        assert store.registry.find(APP, "1") is None
        assert store.jobs.pending() == []

    def test_delete__while_the_background_works_on_it_too__counts_right(
        self, store: Store, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        say(store, ONE, True, *[f"user-{n}" for n in range(2000)])
        steps: list[int] = []
        step = store.jobs.step

        def both(job: object) -> int | None:
            for other in store.jobs.pending():
                step(other)
            return step(job)

        monkeypatch.setattr(store.jobs, "step", both)
        monkeypatch.setattr("app.cli.cohorts.progress", _recording(steps))
        assert run("cohorts", "delete", "1", "--yes").exit_code == 0
        assert sum(steps) == 2020
        assert min(steps) >= 0
        assert store.registry.find(APP, "1") is None


def _recording(steps: list[int]) -> Callable[..., AbstractContextManager[object]]:
    @contextmanager
    def progress(length: int, label: str) -> Iterator[Callable[[int], None]]:
        yield steps.append
        assert sum(steps) == length

    return progress


class TestRegister:
    def test_register__a_file__lets_its_users_in(
        self, store: Store, run: Run, tmp_path: Path
    ) -> None:
        file = tmp_path / "ids"
        file.write_bytes("\ufeffa b\r\n\n  \nbé@x/y\n🎉\na b\nlast".encode())
        result = run("users", "register", str(file))
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout == "5 ids read, 4 registered, 0 invalid.\n"
        for user in ("a b", "bé@x/y", "🎉", "last"):
            assert store.lookups.user_record(APP, user).registered
        result = run("users", "register", str(file))
        assert result.stdout == "5 ids read, 0 registered, 0 invalid.\n"

    @pytest.mark.parametrize("text", ["a\rb\r", "\ufeff\r\n\r\nuser_id\r\na\r\nb\r\n"])
    def test_register__line_ends_and_first_lines_of_other_programs__are_no_part_of_an_id(
        self, store: Store, run: Run, text: str
    ) -> None:
        result = run("users", "register", "-", input=text.encode())
        assert result.stdout == "2 ids read, 2 registered, 0 invalid.\n"
        assert all(store.lookups.user_record(APP, user).registered for user in "ab")

    @pytest.mark.parametrize("text", ['[\n  "a"\n]\n', '\n{\n  "userId": "a"\n}\n', "[{\n"])
    def test_register__json_of_several_lines__is_refused_and_registers_nobody(
        self, store: Store, run: Run, redis_client: redis.Redis, text: str
    ) -> None:
        result = run("users", "register", "-", input=text)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == "Error: The file is JSON. Write one object or id on each line.\n"
        assert redis_client.keys("*:registered") == []

    def test_register__some_lines_are_no_ids__registers_the_others_and_exits_with_1(
        self, store: Store, run: Run
    ) -> None:
        lines = [b"good", b"x" * 1025, b"\xff\xfe", b"nul\0", b"\xed\xa0\x80", b"x" * 1024, b"end"]
        result = run("users", "register", "-", input=b"\n".join(lines))
        assert result.exit_code == 1
        assert result.stdout == "3 ids read, 3 registered, 4 invalid.\n"
        assert result.stderr.splitlines() == [
            "line 2: Must be at most 1024 bytes of UTF-8.",
            "line 3: Must be valid UTF-8.",
            "line 4: Must not contain NUL.",
            "line 5: Must be valid UTF-8.",
        ]
        assert store.lookups.user_record(APP, "end").registered

    def test_register__many_bad_lines__reports_the_first_and_counts_the_rest(
        self, store: Store, run: Run
    ) -> None:
        result = run("users", "register", "-", input=b"\xff\n" * 50)
        assert result.stderr.count("line ") == 20
        assert result.stderr.endswith("… and 30 more invalid lines.\n")

    def test_register__more_than_one_chunk__registers_them_all(
        self, store: Store, run: Run, redis_client: redis.Redis
    ) -> None:
        result = run("users", "register", "-", input="\n".join(f"id-{n}" for n in range(25_000)))
        assert result.stdout == "25000 ids read, 25000 registered, 0 invalid.\n"
        assert sum(redis_client.scard(k) for k in redis_client.keys("*:registered")) == 25_000

    @pytest.mark.parametrize(
        "text",
        [
            '\ufeff"user_id","reason"\r\n"bob","unknown_user"\r\n"\'=1","unknown_user"\r\n',
            "Amplitude ID,User ID\n1,bob\n2,=1\n",
            '\n{"userId": "bob"}\n{"userId": "=1"}\n',
        ],
        ids=["left out", "Amplitude's", "ndjson"],
    )
    def test_register__csv_or_ndjson__registers_its_ids(
        self, text: str, store: Store, run: Run, redis_client: redis.Redis
    ) -> None:
        result = run("users", "register", "-", input=text)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout == "2 ids read, 2 registered, 0 invalid.\n"
        keys = redis_client.keys("*:registered")
        assert {user for key in keys for user in redis_client.smembers(key)} == {"bob", "=1"}
        assert run("users", "unregister", "-", input=text).stdout.startswith("2 ids read, 2 un")

    def test_register__csv_with_rows_without_ids__registers_the_others_and_exits_with_1(
        self, store: Store, run: Run
    ) -> None:
        rows = "".join(f"{n},\n" for n in range(30)) + "".join(f"{n},a\0b\n" for n in range(30))
        result = run("users", "register", "-", input=f"n,user_id\n1,bob\n{rows}")
        assert (result.exit_code, result.stdout) == (1, "1 ids read, 1 registered, 60 invalid.\n")
        assert result.stderr.startswith("line 33: Must not contain NUL.\n")
        assert result.stderr.endswith("… and 10 more invalid lines.\n30 rows without a user id.\n")

    def test_register__a_file_that_cannot_be_read__says_so(self, store: Store, run: Run) -> None:
        result = run("users", "register", "-", input="user_id;since\nbob;1\n")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "The header has no column user_id. It has: user_id;since." in result.stderr
        result = run("users", "register", "-", input='{"userId":"bob"}\n{"userId":\n')
        assert "Line 2 is not valid JSON." in result.stderr

    def test_register__an_app_that_has_sent_nothing_yet__is_taken(self, run: Run) -> None:
        assert run("users", "register", "-", "--app-id", "fresh", input="u1").exit_code == 0
        assert '"registered": true' in run("users", "show", "u1", "--json").stdout

    def test_register__no_such_file__is_wrong_usage(self, store: Store, run: Run) -> None:
        assert run("users", "register", "/no/such/file", "--app-id", "a").exit_code == 2

    def test_unregister__takes_the_registration_and_nothing_else(
        self, store: Store, run: Run
    ) -> None:
        run("users", "register", "-", input="u1\nu2")
        result = run("users", "unregister", "-", input="u1\nnobody")
        assert result.stdout == "2 ids read, 1 unregistered, 0 invalid.\n"
        assert store.lookups.user_record(APP, "u1") == ({ONE: False, TWO: True}, False, False)
        assert store.lookups.user_record(APP, "u2").registered


class TestUsers:
    def test_show__prints_traits_registration_and_suppression(self, store: Store, run: Run) -> None:
        run("users", "register", "-", input="u1")
        assert run("users", "show", "u1").stdout.splitlines() == [
            f"false {ONE}",
            f"true  {TWO}",
            "The user is registered.",
        ]
        shown = json.loads(run("users", "show", "u1", "--json").stdout)
        assert shown == {
            "traits": {ONE: False, TWO: True},
            "registered": True,
            "suppressed": False,
        }

    def test_show__of_an_unknown_user__exits_with_1(self, store: Store, run: Run) -> None:
        result = run("users", "show", "nobody")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == "Error: Unknown user.\n"

    def test_erase__confirmed__erases(
        self, store: Store, run: Run, redis_client: redis.Redis
    ) -> None:
        result = run("users", "erase", "u1", input="y\n")
        assert result.exit_code == 0
        assert result.stdout.startswith(
            "Erased. Traits: 2. Entries of the change stream: 0 removed, "
        )
        assert "u1" not in traits(redis_client, APP)

    def test_erase__not_confirmed__changes_nothing(self, store: Store, run: Run) -> None:
        assert run("users", "erase", "u1", input="n\n").exit_code == 1
        assert store.lookups.user_record(APP, "u1").traits

    def test_suppress__and_unsuppress__keep_the_user_out_and_let_in_again(
        self, store: Store, run: Run
    ) -> None:
        result = run("users", "erase", "u1", "--suppress", "--yes")
        assert result.stdout.endswith("Later syncs skip the user.\n")
        say(store, TWO, True, "u1")
        assert store.lookups.user_record(APP, "u1") == ({}, False, True)
        assert "is suppressed" in run("users", "show", "u1").stdout
        assert run("users", "unsuppress", "u1").stdout.startswith("Later syncs accept")
        assert run("users", "unsuppress", "u1").stdout == "The user was not suppressed.\n"
        say(store, TWO, True, "u1")
        assert store.lookups.user_record(APP, "u1").traits == {TWO: True}

    @pytest.mark.parametrize("command", ["erase", "unsuppress", "show"])
    def test_id__that_is_none__is_wrong_usage(self, command: str, store: Store, run: Run) -> None:
        result = run("users", command, "x" * 1025)
        assert result.exit_code == 2
        assert "at most 1024 bytes" in result.stderr


class TestCheck:
    def test_check__of_a_good_store__says_what_was_proved_and_ends_with_0(
        self, store: Store, run: Run
    ) -> None:
        result = run("store", "check")
        assert result.exit_code == 0
        assert result.stdout.startswith("Checked shop: 2 cohorts, 22 memberships, 20 users with 22")
        assert result.stdout.endswith("No problems found.\n")

    def test_check__of_a_broken_store__tells_and_repairs(
        self, store: Store, run: Run, redis_client: redis.Redis
    ) -> None:
        redis_client.hdel(store.keys.user(APP, "u10"), ONE)
        redis_client.hset(store.keys.user(APP, "u11"), "plan", "pro")
        found = run("store", "check")
        assert found.exit_code == 1
        assert "cohort 1; user u10; no field\n" in found.stdout
        assert "1 foreign_field: a hash has a field that is not a trait" in found.stdout
        report = json.loads(run("store", "check", "--repair", "--json").stdout)
        assert report["ok"] is False
        assert report["found"] == {"member_without_trait": 1, "foreign_field": 1}
        assert report["repaired"] == {"member_without_trait": 1}
        assert [f["user_id"] for f in report["findings"]] == ["u10", "u11"]
        again = run("store", "check", "--json")
        assert again.exit_code == 1
        assert json.loads(again.stdout)["found"] == {"foreign_field": 1}

    def test_check__without_app_id__checks_every_app(
        self, store: Store, run: Run, redis_client: redis.Redis
    ) -> None:
        say(store, ONE, True, "u1", app="staging")
        redis_client.hdel(store.keys.user("staging", "u1"), ONE)
        assert json.loads(run("store", "check", "--json").stdout)["app_ids"] == [APP, "staging"]
        assert run("store", "check", "--app-id", APP).exit_code == 0
        assert run("store", "check", "--app-id", "staging").exit_code == 1

    def test_check__of_an_empty_store__finds_nothing(self, run: Run) -> None:
        assert run("store", "check").exit_code == 0


class TestStore:
    def test_store__that_can_not_be_had__is_one_line_and_1(
        self, make_app: Callable[..., Flask], run: Run
    ) -> None:
        runner = make_app(redis_url="redis://127.0.0.1:1").test_cli_runner()
        for words in (["cohorts", "list"], ["store", "check"], ["users", "register", "-"]):
            result = runner.invoke(args=words, input="u1")
            assert result.exit_code == 1
            assert result.output == (
                "Error: 127.0.0.1:1: The store is unreachable, or the connection broke. "
                "(store_unreachable) It reported: Error 111 connecting to 127.0.0.1:1. Connection "
                "refused.\n"
            )

    def test_store__wrong_password_or_missing_permission__are_told_apart(
        self, make_app: Callable[..., Flask], redis_client: redis.Redis, store_url: str
    ) -> None:
        redis_client.acl_setuser("few", enabled=True, passwords=["+s3cret"], commands=["+ping"])
        socket = store_url.partition("://")[2]
        errors = {}
        try:
            for password in ("s3cret", "wr0ng"):
                url = f"unix://few:{password}@{socket}"
                result = make_app(redis_url=url).test_cli_runner().invoke(args=["keys", "list"])
                assert result.exit_code == 1
                assert result.output.startswith(f"Error: {socket}: The store ")
                assert password not in result.output
                errors[password] = result.output
        finally:
            redis_client.acl_deluser("few")
        assert "lacks a permission" in errors["s3cret"]
        assert "has no permissions to run the" in errors["s3cret"]
        assert "refuses the user name or password" in errors["wr0ng"]
        assert "WRONGPASS" in errors["wr0ng"] or "invalid username-password" in errors["wr0ng"]

    def test_store__written_with_another_number_of_partitions__is_refused(
        self, make_app: Callable[..., Flask], store: Store
    ) -> None:
        runner = make_app(store_partitions=7).test_cli_runner()
        result = runner.invoke(args=["store", "check", "--repair"])
        assert result.exit_code == 1
        assert "STORE_PARTITIONS is 7, but the stored data has" in result.output

    def test_commands__with_work_waiting__leave_it_to_the_web_processes(
        self, store: Store, run: Run
    ) -> None:
        store.jobs.begin_deletion(APP, "1")
        run("cohorts", "list")
        run("store", "check")
        assert store.jobs.pending()
        Background(store).work()
        Background(store).work()
        assert not store.jobs.pending()


class TestResync:
    def test_resync__from_start_to_finish(
        self, run: Run, store: Store, redis_client: redis.Redis
    ) -> None:
        assert "has no resync" in run("cohorts", "resync", "status", "1").stderr
        started = run("cohorts", "resync", "start", "1", "--quiet", "600")
        assert started.stdout.endswith(
            "finishes by itself once nothing more has arrived for 600 s.\n"
        )
        assert "not finished" in run("cohorts", "resync", "start", "1").stderr
        refused = run("cohorts", "resync", "finish", "1")
        assert (refused.exit_code, "all members would leave" in refused.stderr) == (1, True)
        say(store, ONE, True, *USERS[5:15])
        status = run("cohorts", "resync", "status", "1").stdout
        assert "confirmed:      10" in status
        assert "unconfirmed:    5" in status
        assert "finishes:       after 600 s without a request\n" in status
        assert json.loads(run("cohorts", "resync", "status", "1", "--json").stdout)["id"]
        store.completeness.raise_reason(APP, "1", IncompleteReason.SYNC_FAILED)
        for _ in store.resyncs.steps(ResyncPlace(APP, "1")):  # as the background work does
            pass
        status = run("cohorts", "resync", "status", "1").stdout
        assert "finishes:" not in status
        assert "requests for the cohort failed" in status
        done = run("cohorts", "resync", "finish", "1")
        assert done.stdout == "5 members removed; 10 remain.\n"
        status = run("cohorts", "resync", "status", "1").stdout
        assert "members:        10\nremoved:        5\n" in status
        assert "confirmed" not in status
        assert members(redis_client, APP)["1"] == set(USERS[5:15])
        assert "finished" in run("cohorts", "resync", "abort", "1").stderr

    def test_abort__leaves_everything(
        self, run: Run, store: Store, redis_client: redis.Redis
    ) -> None:
        run("cohorts", "resync", "start", "1")
        assert run("cohorts", "resync", "abort", "1").stdout == "Aborted.\n"
        assert members(redis_client, APP)["1"] == set(USERS[5:])


class TestImport:
    def test_import__of_a_file(
        self, run: Run, store: Store, redis_client: redis.Redis, tmp_path: Path
    ) -> None:
        text = '"amplitude_id","user_id"\n' + "".join(f'"1","{u}"\n' for u in [*USERS[:15], ""])
        plain, packed = tmp_path / "cohort.csv", tmp_path / "cohort.csv.gz"
        plain.write_text(text)
        packed.write_bytes(gzip.compress(text.encode()))
        dry = run("cohorts", "import", "1", str(packed), "--dry-run")
        expected = "5 users would have entered, 5 would have left, 10 were members already.\n"
        assert dry.stdout == expected + "1 row without a user id (anonymous users).\n"
        assert dry.stderr == ""
        assert members(redis_client, APP)["1"] == set(USERS[5:])
        done = run("cohorts", "import", "1", str(plain))
        assert done.stdout.startswith("5 users entered, 5 left, 10 were members already.\n")
        assert members(redis_client, APP)["1"] == set(USERS[:15])

    def test_import__of_standard_input__creates_a_cohort(
        self, run: Run, store: Store, redis_client: redis.Redis
    ) -> None:
        words = ("cohorts", "import", "9", "-", "--format", "ndjson")
        unknown = run(*words, input='"a"\n').stderr
        assert unknown == "Error: Unknown cohort: 9. To create it, add --name.\n"
        done = json.loads(run(*words, "--name", "New", "--json", input='"a"\n"b"\n').stdout)
        assert (done["added"], done["rejected"]) == (2, 0)
        assert traits(redis_client, APP)["a"] == {"[Amplitude] New: 9": "true"}
        shown = run("cohorts", "show", "9").stdout
        assert "first seen:     20" in shown
        assert "last received:  never\n" in shown
        assert "last received:  never\n" in run("cohorts", "cadence", "9").stdout

    def test_import__for_an_app_without_data__needs_a_key_of_that_app(
        self, run: Run, store: Store, redis_client: redis.Redis
    ) -> None:
        """A mistyped app would be created."""
        words = ("cohorts", "import", "9", "-", "--name", "New", "--app-id", "newer")
        for more in ((), ("--dry-run",)):
            refused = run(*words, *more, input="user_id\na\n")
            assert refused.exit_code == 2
            assert "Unknown app: newer." in refused.stderr
        assert store.apps() == [APP]
        assert run("keys", "create", "--app-id", "newer").exit_code == 0
        assert run(*words, input="user_id\na\n").exit_code == 0
        assert members(redis_client, "newer") == {"9": {"a"}}

    def test_import__of_a_damaged_file__says_so(
        self, run: Run, store: Store, tmp_path: Path
    ) -> None:
        packed = bytearray(gzip.compress("".join(f"{n * n}\n" for n in range(5000)).encode()))
        packed[200:250] = bytes(50)
        (tmp_path / "cohort.csv.gz").write_bytes(packed)
        # Linux can open the second one, but not read it.
        for name in (str(tmp_path / "cohort.csv.gz"), "/proc/self/mem"):
            refused = run("cohorts", "import", "1", name)
            assert refused.exit_code == 1
            assert "It cannot be read: " in refused.stderr

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("id\n1\n", "has no column user_id"),
            ("user_id\n", "The file has no users to keep or add: all members would leave"),
            ("user_id\nx\n", "More than half"),
        ],
    )
    def test_import__that_is_refused__changes_nothing(
        self, run: Run, store: Store, redis_client: redis.Redis, text: str, problem: str
    ) -> None:
        dry = run("cohorts", "import", "1", "-", "--dry-run", input=text)
        assert problem in dry.stderr
        refused = run("cohorts", "import", "1", "-", input=text)
        assert refused.exit_code == 1
        assert problem in refused.stderr
        assert members(redis_client, APP)["1"] == set(USERS[5:])
        assert run("cohorts", "resync", "status", "1").exit_code == 1
