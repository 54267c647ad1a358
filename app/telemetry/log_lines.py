"""Human-readable log lines: one short line per event.

The line of a request begins with the time, its method, path and status.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

# Fields of a request's event that the line omits: shown at its beginning, or of little interest.
_OMITTED = ("event", "level", "timestamp", "method", "path", "status", "ms", "store_ms")
_OMITTED_UNLESS_FAILED = ("request_id", "source", "key")


def text_line(event: Mapping[str, Any]) -> str:
    """The line for an event, with local time; followed by the lines of a traceback, if any."""
    if event.get("event") == "request" and "method" in event:
        path = event["path"] or "(no such path)"
        head = f"{event['method']} {path} {event['status']} in {event['ms']} ms"
        failed = event["status"] >= 500
        omitted: tuple[str, ...] = _OMITTED if failed else (*_OMITTED, *_OMITTED_UNLESS_FAILED)
    else:
        level = event.get("level", "info")
        head = ("" if level == "info" else f"{level}: ") + str(event.get("event"))
        omitted = ("event", "level", "timestamp")
    members = [
        f"{name}={_shown(value)}"
        for name, value in event.items()
        if name not in omitted and name != "exception"
    ]
    lines = [" ".join([time.strftime("%H:%M:%S"), head, *members])]
    lines += str(event.get("exception", "")).splitlines()
    return "\n".join(map(_printable, lines))


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_shown, value))
    if not isinstance(value, str):
        return json.dumps(value, default=str)
    plain = value and not any(char.isspace() or char in '"=,' for char in value)
    return value if plain else json.dumps(value, ensure_ascii=False)


def _printable(line: str) -> str:
    """Escape what could move a terminal's cursor, or reverse the direction of text."""
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in line)
