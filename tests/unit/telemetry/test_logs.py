"""What libraries log looks as what the service logs, and quotes as little."""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any

import pytest
import structlog

from app.telemetry.logs import OncePerMinute, stdlib_config

USER = "alice@example.com"


def formatted(level: str, form: str = "json") -> str:
    """The line for an error that quotes a user's id."""
    make = stdlib_config(level, form)["formatters"]["lines"]
    formatter = make.pop("()")(**make)
    try:
        raise ValueError(USER)
    except ValueError:
        record = logging.LogRecord("lib", logging.ERROR, "", 0, "It broke", (), sys.exc_info())
    line: str = formatter.format(record)
    return line


@pytest.mark.parametrize(("level", "quotes"), [("info", False), ("debug", True)])
def test_error__that_a_library_logs__has_its_message_at_debug_alone(
    level: str, quotes: bool
) -> None:
    line = formatted(level)
    assert json.loads(line)["event"] == "It broke"
    assert "ValueError" in line
    assert (USER in line) is quotes


def test_error__that_a_library_logs__has_its_traceback_below_a_line_of_text() -> None:
    lines = formatted("info", "text").splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d error: It broke logger=lib", lines[0])
    assert lines[-1] == "ValueError"
    assert USER not in "".join(lines)


class TestOncePerMinute:
    def logged(self, clock: list[float], *lines: tuple[str, dict[str, Any]]) -> list[Any]:
        """What is logged of each line, None for nothing; the clock moves a second before each."""
        once, found = OncePerMinute(lambda: clock[0]), []
        for method, line in lines:
            clock[0] += 1
            try:
                found.append(once(None, method, dict(line)))
            except structlog.DropEvent:
                found.append(None)
        return found

    def test_line__that_repeats__is_logged_once_a_minute_with_the_number_dropped(self) -> None:
        line = {"event": "paused", "reason": "store_unreachable"}
        found = self.logged([0.0], *[("warning", line)] * 130)
        assert [n for n, each in enumerate(found) if each] == [0, 60, 120]
        assert found[0] == line
        assert found[60] == {**line, "dropped": 59}

    def test_line__with_another_reason__is_logged_at_once(self) -> None:
        lines = [("warning", {"event": "paused", "reason": reason}) for reason in "abab"]
        assert [bool(each) for each in self.logged([0.0], *lines)] == [True, True, False, False]

    def test_error__of_the_same_type__is_the_same(self) -> None:
        lines = [
            ("error", {"event": "e", "exc_info": kind()}) for kind in (OSError, OSError, ValueError)
        ]
        assert [bool(each) for each in self.logged([0.0], *lines)] == [True, False, True]

    def test_line__about_a_request_or_without_a_problem__is_always_logged(self) -> None:
        of_a_request = ("error", {"event": "request", "request_id": "r1"})
        assert all(self.logged([0.0], *[of_a_request] * 3, *[("info", {"event": "done"})] * 3))

    def test_lines__of_ever_new_kinds__take_bounded_memory(self) -> None:
        once = OncePerMinute()
        for number in range(5000):
            once(None, "warning", {"event": "e", "number": number})
        assert len(once._logged) <= 1000
