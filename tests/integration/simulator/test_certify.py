"""A correct receiver is certified; every flaw is found by the checks meant for it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from simulator.certify import Options, Report, Unauthorised, report, run_checks
from simulator.certify.checks import CHECKS
from simulator.certify.context import Context
from simulator.certify.model import Sample
from simulator.cohort_sync import Mode
from simulator.connection import Auth, Target
from tests.integration.simulator.receiver import APP, FLAWS, INVALID_USER, KEY, Receiver
from tests.support.effort import some, thorough

NAMES = [check.name for check in CHECKS]

# Each flaw, and the checks that find it.
FOUND_BY: dict[str, tuple[str, ...]] = {
    "accepts-any-key": ("credentials.missing", "credentials.wrong", "credentials.lists"),
    "open-webhook": ("credentials.webhook",),
    "no-basic": ("credentials.basic",),
    "no-header-key": ("credentials.headers",),
    "no-bearer": ("credentials.bearer",),
    "refusal-is-403": ("credentials.missing", "credentials.wrong"),
    "created-201": ("property.single", "list.id-for-syncs", "webhook.repeat"),
    "strict-fields": ("property.unknown-fields", "webhook.user-properties"),
    "needs-context": ("property.no-context", "credentials.headers"),
    "needs-prefix": ("property.spellings", "credentials.headers"),
    "first-colon": ("property.names", "list.names"),
    "mangles-names": ("property.names", "property.charset", "list.names"),
    "lowercases-ids": ("property.user-ids",),
    "false-deletes": ("property.single", "property.two-cohorts", "list.repeat"),
    "ignores-false": ("property.batch", "property.leave-first", "list.add-and-remove"),
    "conflict-on-repeat": ("property.repeat", "list.repeat", "webhook.repeat"),
    "truthy-values": ("invalid.values",),
    "no-validation": ("invalid.json", "invalid.shape", "list.invalid", "webhook.invalid"),
    "crash-on-bad-json": ("invalid.json", "invalid.never-500", "webhook.broken-template"),
    "crash-on-deep": ("invalid.never-500",),
    "drops-bad-items": ("invalid.no-silent-drop",),
    "half-batch": ("invalid.writes-nothing",),
    "loses-batch-tail": ("property.10000-users",),
    "small-limit": ("property.1000-users", "list.1000-users", "webhook.1000-users"),
    "refuses-parallel": ("property.four-at-once", "property.same-at-once", "list.four-at-once"),
    "exact-content-type": ("property.charset",),
    "lost-updates": ("property.cohorts-at-once",),
    "one-cohort": ("property.two-cohorts",),
    "second-list": ("list.create-again",),
    "racing-lists": ("list.create-at-once",),
    "list-id-elsewhere": ("list.id-for-testing", "list.id-for-syncs"),
    "list-id-once": ("list.id-for-syncs",),
    "list-id-in-response": ("list.id-for-testing",),
    "creation-empties": ("list.create-keeps-members",),
    "lists-apart": ("modes.same-cohort",),
    "unknown-list-ok": ("list.unknown",),
    "empty-add-refused": ("list.no-users",),
    "no-user-ids": ("list.user_ids",),
    "no-document-url": ("property.document-url",),
    "strings-only": ("property.numeric-ids", "list.numeric-ids", "webhook.numeric-ids"),
    "one-bad-id-refuses": ("property.bad-id", "list.bad-id", "webhook.bad-id"),
    "bad-ids-are-400": ("property.only-bad-ids", "list.only-bad-ids", "webhook.only-bad-ids"),
    "body-limit": ("webhook.5000-users-with-properties",),
    "webhook-as-it-comes": ("webhook.late",),
    "applies-half-bodies": ("network.cut-body",),
    "one-at-a-time": ("network.slow-body",),
    "slow": ("property.within-2s", "webhook.within-2s"),
    "rather-slow": ("webhook.within-1s",),
    "invalid-user-ok": ("status.404",),
    "never-throttles": ("status.429",),
    "throttles-with-503": ("status.429",),
    "acknowledges-and-forgets": ("sync.property", "sync.list", "sync.webhook"),
    "ignores-false ": ("webhook.enter-and-exit",),
}


def run(
    receiver: Receiver,
    only: Sequence[str] = (),
    *,
    skip: Sequence[str] = (),
    auth: Auth = "basic",
    read: bool = True,
    **options: Any,
) -> Report:
    return run_checks(
        Options(
            Target(receiver.url, KEY, APP, auth, timeout=10),
            only=only,
            skip=skip,
            invalid_user=INVALID_USER,
            **options,
        ),
        CHECKS,
        receiver if read else None,
    )


def outcomes(found: Report) -> dict[str, str]:
    return {outcome.check.name: outcome.verdict for outcome in found.outcomes}


def test_certify__correct_receiver__passes_every_check() -> None:
    with Receiver() as receiver:
        found = run(receiver, skip=("network.slow-body", "sync.webhook", "*within*"))
        wrong = [report.line(o) for o in found.outcomes if o.verdict != "passed"]
        assert wrong == ["skip " + wrong[0][5:]]
        assert wrong[0].startswith("skip status.429: needs --throttle")
        assert found.certified
        assert receiver.statuses.keys() == {200, 400, 401, 404}


@thorough
def test_certify__correct_receiver_without_a_reader__passes_without_comparing() -> None:
    with Receiver() as receiver:
        found = run(
            receiver, skip=("network.slow-body", "sync.webhook", "*within*", "*.5000*"), read=False
        )
        assert [name for name, verdict in outcomes(found).items() if verdict == "skipped"] == [
            "property.cohorts-at-once",
            "invalid.writes-nothing",
            "modes.same-cohort",
            "status.429",
        ]
        assert found.certified
        assert "BY ITS REPLIES ONLY" in report.verdict(found)
        passed = [outcome for outcome in found.outcomes if outcome.verdict == "passed"]
        assert all("(replies only)" in report.line(outcome) for outcome in passed)
        details = {outcome.check.name: outcome.detail for outcome in found.outcomes}
        assert "the state was not compared" in details["sync.property"]


def test_certify__correct_receiver__is_fast_enough() -> None:
    with Receiver() as receiver:
        verdicts = {"failed"}
        for _ in range(5):  # the machine may be busy
            if verdicts != {"passed"}:
                verdicts = set(outcomes(run(receiver, ["*within*"])).values())
        assert verdicts == {"passed"}


@thorough
def test_certify__slow_bodies_and_webhook_sync__pass_on_a_correct_receiver() -> None:
    with Receiver() as receiver:
        found = run(receiver, ("network.slow-body", "sync.webhook"))
        assert set(outcomes(found).values()) == {"passed"}


@pytest.mark.parametrize("flaw", some(FOUND_BY))
def test_certify__flawed_receiver__is_found_by_the_checks_for_it(flaw: str) -> None:
    throttle = 20 if "throttle" in flaw else None
    with Receiver(flaw.strip(), throttle=throttle) as receiver:
        auth: Auth = "bearer" if flaw == "no-basic" else "basic"
        burst = None if throttle is None else 100
        found = run(receiver, FOUND_BY[flaw], auth=auth, throttle=burst)
        failed = {name for name, verdict in outcomes(found).items() if verdict == "failed"}
        expected = set(FOUND_BY[flaw])
        if flaw == "acknowledges-and-forgets":
            assert failed  # which of them depends on the tenth request
        else:
            assert failed == expected
        if any(check.level == "must" for check in CHECKS if check.name in failed):
            assert not found.certified


# Those of the flaws above of which no other check of the mode may make anything.
EXACT: tuple[tuple[str, Mode], ...] = (
    ("list-id-once", "list"),
    ("list-id-in-response", "list"),
    ("strings-only", "property"),
    ("strings-only", "list"),
    ("strings-only", "webhook"),
    ("one-bad-id-refuses", "property"),
    ("one-bad-id-refuses", "list"),
    ("one-bad-id-refuses", "webhook"),
    ("bad-ids-are-400", "property"),
    ("bad-ids-are-400", "list"),
    ("bad-ids-are-400", "webhook"),
    ("body-limit", "webhook"),
)


@thorough
@pytest.mark.parametrize(("flaw", "mode"), EXACT)
def test_certify__one_flaw__fails_exactly_one_check_of_its_mode(flaw: str, mode: Mode) -> None:
    with Receiver(flaw) as receiver:
        found = run(receiver, skip=("network.*", "sync.*", "*within*"), modes=[mode])
    failed = [name for name, verdict in outcomes(found).items() if verdict == "failed"]
    modes = {check.name: check.mode for check in CHECKS}
    assert failed == [name for name in FOUND_BY[flaw] if modes[name] == mode]


def test_found_by__all_checks_and_flaws__are_there() -> None:
    assert {name for names in FOUND_BY.values() for name in names} == set(NAMES)
    assert {flaw.strip() for flaw in FOUND_BY} == set(FLAWS)
    assert len(NAMES) == len(set(NAMES))


def test_certify__throttling_receiver__is_retried_and_passes() -> None:
    with Receiver(throttle=30) as receiver:
        found = run(receiver, ["status.429"], throttle=100)
        assert outcomes(found) == {"status.429": "passed"}
        assert receiver.statuses[429] > 0


@thorough
def test_certify__receiver_that_throttles_all_the_time__passes_every_check() -> None:
    with Receiver(throttle=50) as receiver:
        found = run(receiver, skip=("sync.webhook", "*within*"), throttle=300)
        assert receiver.statuses[429] > 0
        wrong = [report.line(o) for o in found.outcomes if o.verdict != "passed"]
        assert wrong == []


def test_certify__throttled_request__waits_for_its_retry_after() -> None:
    with Receiver(fail_first=1, fail_status=429) as receiver:
        found = run(receiver, ["property.single"])
        assert found.certified
        assert found.seconds >= 1


def test_certify__check_that_raises__fails_and_the_others_run() -> None:
    def breaks(_: Context) -> None:
        raise RuntimeError("from a check")

    first = replace(CHECKS[0], run=breaks)
    with Receiver() as receiver:
        found = run_checks(Options(Target(receiver.url, KEY, APP)), [first, CHECKS[1]], receiver)
    assert list(outcomes(found).values()) == ["failed", "passed"]
    assert found.outcomes[0].detail == "RuntimeError: from a check"


def test_certify__list_id_of_another_name__is_read_at_the_path_of_the_portal() -> None:
    with Receiver() as receiver:
        checks = ["list.id-*"]
        for path, verdicts in (
            ("response.list_id", ["passed", "passed"]),
            ("listId", ["failed", "passed"]),
            ("response.id", ["failed", "failed"]),
        ):
            found = run(receiver, checks, list_id_path=path)
            assert list(outcomes(found).values()) == verdicts
    assert "no list id at 'response.id' (--list-id-path) in the reply: {" in report.line(
        found.outcomes[1]
    )


def test_certify__list_id_that_cannot_be_sent__fails_the_checks_of_lists() -> None:
    with Receiver() as receiver:
        receiver._create_list = lambda _: {"list_id": "\ud800"}  # type: ignore[method-assign]
        found = run(receiver, ["list.id-for-syncs", "sync.list"])
    assert set(outcomes(found).values()) == {"failed"}
    assert {"no list id" in outcome.detail for outcome in found.outcomes} == {True}


def test_certify__wrong_key__is_no_verdict_on_the_receiver() -> None:
    with Receiver() as receiver, pytest.raises(Unauthorised, match="401"):
        run_checks(Options(Target(receiver.url, "wrong")), CHECKS)


@pytest.mark.parametrize("mode", [pytest.param("property", marks=thorough), "list", "webhook"])
def test_certify__one_mode__runs_only_its_checks(mode: Any) -> None:
    with Receiver() as receiver:
        found = run(receiver, skip=("network.*", "sync.*", "*within*"), modes=[mode])
        assert found.certified
        assert {o.check.mode for o in found.outcomes} == {mode}
        assert {sample.mode for sample in found.samples} == {mode}


def test_certify__no_must_was_checked__is_not_certified() -> None:
    with Receiver() as receiver:
        found = run(receiver, ["list.unknown"])
        assert not found.certified
        assert "no check of level must" in report.verdict(found)


def test_checks__names__have_a_group_and_a_requirement() -> None:
    for check in CHECKS:
        assert re.fullmatch(r"[a-z]+\.[a-z0-9_-]+", check.name)
        assert check.requirement.endswith((".", "”", "”."))


class _Page(HTMLParser):
    """Collects the tags of a page, and the resources that it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [str(value) for name, value in attrs if name in ("src", "href", "srcset")]


def test_html__hostile_answers__are_escaped_and_nothing_is_loaded() -> None:
    with Receiver() as receiver:
        original = receiver._handle
        receiver._handle = lambda *a: (  # type: ignore[method-assign]
            original(*a) if len(receiver.bodies) == 0 else (418, {"x": "<script>alert(1)</script>"})
        )
        found = run(receiver, ["property.single", "property.batch"])
    found.samples.append(Sample("<b>", "list", 1000, 0.01))
    text = report.html(found)
    page = _Page()
    page.feed(text)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert page.loads == []
    assert page.tags.count("circle") == len(found.samples) + 3
    assert "Not certified" in text
    assert "418" in text


def test_html__no_answer_at_all__still_is_a_page() -> None:
    found = Report("http://h", 1, False, 0.0)
    assert "No request was successful" in report.html(found)


def test_html__narrow_screen__lets_its_tables_scroll() -> None:
    narrow = report.html(Report("http://h", 1, False, 0.0)).partition("@media (max-width")[2]
    assert "table { display: block; overflow-x: auto; }" in narrow


def test_as_dict__report__is_json_with_latencies_by_mode_and_size() -> None:
    with Receiver() as receiver:
        found = run(receiver, ["property.1000-users", "webhook.late"])
    data = json.loads(json.dumps(report.as_dict(found)))
    assert data["certified"] is True
    assert data["counts"] == {"passed": 2, "failed": 0, "skipped": 0}
    assert [check["name"] for check in data["checks"]] == ["property.1000-users", "webhook.late"]
    rows = {(row["mode"], row["users"]): row for row in data["latencies"]}
    assert rows["property", 1000]["successful_requests"] == 1
    assert 0 < rows["webhook", 1]["p50"] <= rows["webhook", 1]["p99"] <= rows["webhook", 1]["max"]


def test_samples__request_of_several_users__counts_those_of_its_body() -> None:
    with Receiver() as receiver:
        found = run(receiver, ["property.repeat", "list.repeat", "webhook.repeat"])
    assert {(sample.mode, sample.users) for sample in found.samples} == {
        ("property", 10),
        ("list", 1),  # its creation
        ("list", 5),
        ("webhook", 5),
    }


def test_line__failure__quotes_the_requirement() -> None:
    with Receiver("first-colon") as receiver:
        found = run(receiver, ["property.names"])
    text = report.line(found.outcomes[0])
    assert text.startswith("FAIL property.names: user")
    assert "known: Cohort names may contain colons" in text
