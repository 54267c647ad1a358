"""Log lines for people."""

from __future__ import annotations

from typing import Any

from app.telemetry.log_lines import text_line

REQUEST: dict[str, Any] = {
    "event": "request",
    "level": "info",
    "timestamp": "2026-01-01T00:00:00Z",
    "request_id": "r1",
    "method": "POST",
    "path": "/lists/<path:list_id>/add",
    "source": "list",
    "app": "shop",
    "key": "ingest-1",
    "status": 200,
    "ms": 3.1,
    "store_ms": 2.2,
}


def line(**event: Any) -> str:
    """The line without its time."""
    return text_line(event)[9:]


def test_request__that_is_answered__is_one_short_line() -> None:
    assert line(**REQUEST, cohorts=["a", "b c"], accepted=3, repeated=False) == (
        'POST /lists/<path:list_id>/add 200 in 3.1 ms app=shop cohorts=a,"b c" '
        "accepted=3 repeated=false"
    )


def test_request__that_fails__has_its_id_and_its_traceback() -> None:
    failed = REQUEST | {"status": 500, "level": "error", "exception": "  File x\nValueError"}
    first, *others = line(**failed).splitlines()
    assert "500 in 3.1 ms request_id=r1 source=list app=shop" in first
    assert others == ["  File x", "ValueError"]


def test_request__to_no_address__says_so() -> None:
    wrong = REQUEST | {"path": None, "status": 404, "reason": "not_found"}
    assert line(**wrong) == "POST (no such path) 404 in 3.1 ms app=shop reason=not_found"


def test_event__that_is_no_request__begins_with_its_level() -> None:
    assert line(event="paused", level="warning", dropped=5) == "warning: paused dropped=5"
    assert line(event="request", level="info", status=400) == "request status=400"


def test_text__that_could_change_the_terminal__is_escaped() -> None:
    hostile = "a\nb\x1b[2J\u202e\ud800 é"
    assert line(event=hostile, level="info", name=hostile) == (
        'a\\u000ab\\u001b[2J\\u202e\\ud800 é name="a\\nb\\u001b[2J\\u202e\\ud800 é"'
    )
