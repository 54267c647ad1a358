"""Every key that the service creates is documented, with its type and its end."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import redis
from flask import Flask
from limits import parse

from app.server.background import Background
from app.services import services
from app.store.maintenance.key_names import parse as parse_key
from simulator import payloads
from tests.integration.conftest import APP, Run, caller
from tests.integration.web.api.read_api import ADMIN_KEY, KEYS
from tests.integration.web.dashboard.test_views import Browser

DOCS = Path(__file__).resolve().parents[3] / "docs"
ONE, NEW, TWO = "[Amplitude] one: 1", "[Amplitude] uno: 1", "[Amplitude] two: 2"
TYPES = {"sorted set": "zset"}
# By other programs, for seconds, or only with Amplitude's API, notifications or a lost store.
ELSEWHERE = re.compile(
    r"upstream|reconcile|notif|loss|<group>|begun|seen-before|:mark$|failed-requests|lease|left-out"
)


class Row(NamedTuple):
    """A key of the tables: its name, type, and what ends it; "" in the table of documented keys."""

    name: str
    type: str
    ends: str

    @property
    def form(self) -> re.Pattern[str]:
        name = self.name.replace("…{<tag>}", "cohorts:{<tag>}")
        parts = re.split(r"<[^>]+>|…", name)
        return re.compile(".+".join(map(re.escape, parts)), re.DOTALL)


def documented() -> list[Row]:
    rows = []
    for line in (DOCS / "data-model.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        names = re.findall(r"`([^`]+)`", cells[0])
        if not line.startswith("| `") or not names[0].startswith(("cohorts:", "…{<tag>}")):
            continue
        types = cells[1].split(", ")
        first = names[0]
        for place, name in enumerate(names):
            if name.startswith("…:"):  # the same name, with another end
                stem = first if place and len(types) > 1 else first.rsplit(":", 1)[0]
                name = stem + name[1:] if len(types) == 1 else first + ":" + name.split(":")[-1]
            kind = types[min(place, len(types) - 1)]
            rows.append(Row(name, TYPES.get(kind, kind), cells[4] if len(cells) > 4 else ""))
    return rows


def row_of(key: str, rows: list[Row]) -> Row | None:
    """The row of a key: of several that match, the one with the longest name."""
    matching = [row for row in rows if row.form.fullmatch(key)]
    return max(matching, key=lambda row: len(re.sub("<[^>]+>", "", row.name)), default=None)


def every_kind_of_traffic(app: Flask, run: Run) -> None:
    http, admin, store = caller(app), caller(app, ADMIN_KEY), services(app).store
    for users, trait, member in (
        *((["a", "b"], ONE, True), (["a"], ONE, False), (["c", "d"], NEW, True)),
        *((["a", "b"], TWO, True), (["b", "", None], TWO, True)),
    ):
        http.post(payloads.COHORT_PATH, json=payloads.batch(users, trait, member))
    http.post("/lists", json={"name": "[Amplitude] three: 3"})
    http.post("/lists/3/add", json={"userIds": ["a"]})
    for time_ in ("1", "2", "3"):
        hook = payloads.webhook("h", "4", ["a"], True, computed_time=time_, message_id=time_)
        http.post(payloads.WEBHOOK_PATH, json=hook)
    http.post(payloads.COHORT_PATH, data=b"{", content_type="application/json")
    caller(app, "unknown").post(payloads.COHORT_PATH, json={})
    admin.post("/api/v1/users", json={"userIds": ["a", "x"]})
    admin.delete("/api/v1/users/d?suppress=true")
    admin.post("/api/v1/cohorts/2/resync")
    http.post(payloads.COHORT_PATH, json=payloads.batch(["b"], TWO, True))
    admin.delete("/api/v1/cohorts/3")
    http.post(payloads.COHORT_PATH, json=payloads.batch(["a"], "n: 9", True))
    browser = Browser(app).log_in(ADMIN_KEY)
    browser.send("/logout", token=browser.token())
    run("keys", "create", "--app-id", APP, "--scope", "read")
    store.api_keys.note_used({"environment": time.time_ns() // 1_000_000})
    services(app).sync_recorder.flush()
    store.completeness.raise_reason(APP, "1", "sync_failed")
    background = Background(store)
    background.work()
    background.remove_old()
    http.post(payloads.COHORT_PATH, json=payloads.batch(["e"], NEW, True))
    store.jobs.begin_deletion(APP, "9")
    store.hold.begin()


def test_keys__of_every_kind_of_traffic__are_as_documented(
    make_app: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    limits = {"rate_limit": parse("100000/second"), "auth_failure_rate_limit": parse("9/minute")}
    app = make_app(**KEYS, **limits)
    runner = app.test_cli_runner()
    every_kind_of_traffic(app, lambda *words: runner.invoke(args=words))
    rows = documented()
    produced = set()
    for key in redis_client.scan_iter(count=1000):
        row = row_of(key, rows)
        assert row, f"{key} is not in docs/data-model.md"
        kind = redis_client.type(key)
        if kind == "none":
            continue  # has expired
        assert kind == row.type, key
        expected: Any = parse_key(key.encode(), "cohorts").expected_type
        assert expected is not None, f"key_names.py has no type for {key}"
        assert expected.decode() == row.type, key
        if row.ends.startswith("expires"):
            assert redis_client.pttl(key) != -1, f"{key} does not expire"
        elif "expires" not in row.ends and row.ends:
            assert redis_client.pttl(key) == -1, f"{key} expires, which the docs don't say"
        produced.add(row)
    missing = {row.name for row in rows} - {row.name for row in produced}
    assert {name for name in missing if not ELSEWHERE.search(name)} == set()
