"""What libraries log looks as what the service logs, and quotes as little."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from app.telemetry.logs import stdlib_config

USER = "alice@example.com"


def formatted(level: str) -> str:
    """The line for an error that quotes a user's id."""
    make = stdlib_config(level)["formatters"]["json"]
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
