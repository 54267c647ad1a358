"""Log lines on standard output: one JSON object per event, or a short human-readable line."""

from __future__ import annotations

import logging
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import orjson
import structlog

from app.telemetry.log_lines import text_line

_REPEAT_SECONDS = 60.0
_MAX_REMEMBERED = 1000

_PROCESSORS: list[Any] = [
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def _without_messages(exc_info: Any) -> str:
    """A traceback with the type of each error, but not its message.

    A message may quote what a caller sent, including user ids.
    """
    chain: list[BaseException] = []
    error: BaseException | None = exc_info[1]
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    parts = []
    for error in reversed(chain):
        parts += [*traceback.format_tb(error.__traceback__), type(error).__qualname__, "\n"]
    return "".join(parts)


def _tracebacks(level: str) -> Any:
    if level == "debug":
        return structlog.processors.format_exc_info
    return structlog.processors.ExceptionRenderer(_without_messages)


class OncePerMinute:
    """A processor that drops a warning or error if the same was logged less than a minute ago.

    The next one that is logged has the number of dropped ones as ``dropped``. Without this, several
    tasks would report an outage every second. Lines about a request are all kept.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        # When each was logged last, and how many have been dropped since.
        self._logged: dict[str, tuple[float, int]] = {}

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:
        if method not in ("warning", "error") or "request_id" in event:
            return event
        # An error counts as the same if it has the same type.
        same = repr([(name, _kind(value)) for name, value in event.items()])
        now = self._now()
        at, dropped = self._logged.get(same, (-math.inf, 0))
        if now - at < _REPEAT_SECONDS:
            self._logged[same] = at, dropped + 1
            raise structlog.DropEvent
        if len(self._logged) >= _MAX_REMEMBERED:
            self._logged.clear()
        self._logged[same] = now, 0
        if dropped:
            event["dropped"] = dropped
        return event


def _kind(value: Any) -> Any:
    return type(value) if isinstance(value, BaseException) else value


def _text(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    return text_line(event)


def _text_bytes(_: Any, __: str, event: MutableMapping[str, Any]) -> bytes:
    return text_line(event).encode("utf-8", "backslashreplace")


_json = structlog.processors.JSONRenderer(serializer=orjson.dumps)


def _json_or_text(logger: Any, method: str, event: MutableMapping[str, Any]) -> str | bytes:
    """Render as JSON; in a command, as text, since its errors on standard error are text too."""
    return (_text_bytes if _is_command else _json)(logger, method, event)


def configure(level: str, form: str) -> None:
    """Print the service's own log lines, in the form ``json`` or ``text``; a command's are text.

    Error messages are left out, except at level ``debug``.
    """
    structlog.configure(
        processors=[
            OncePerMinute(),
            *_PROCESSORS,
            _tracebacks(level),
            _text_bytes if form == "text" else _json_or_text,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=_factory(),
        cache_logger_on_first_use=True,
    )


_is_command = False


@contextmanager
def on_stderr() -> Iterator[None]:
    """Send log lines to standard error, as text: a command's standard output is for its results.

    This includes those of a service that is created within the block and calls :func:`configure`.
    """
    global _is_command
    before, _is_command = _is_command, True
    structlog.configure(logger_factory=_factory())
    try:
        yield
    finally:
        _is_command = before
        structlog.configure(logger_factory=_factory())


def _factory() -> structlog.BytesLoggerFactory:
    return structlog.BytesLoggerFactory(sys.stderr.buffer if _is_command else None)


def stdlib_config(level: str, form: str) -> dict[str, Any]:
    """A ``logging.config`` dictionary that renders library log lines (gunicorn's) the same way.

    gunicorn never logs at ``debug``, where it quotes whole requests, including keys.
    """
    servers = "INFO" if level == "debug" else level.upper()
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "lines": {
                "()": structlog.stdlib.ProcessorFormatter,
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    _text if form == "text" else structlog.processors.JSONRenderer(),
                ],
                "foreign_pre_chain": [
                    *_PROCESSORS,
                    _tracebacks(level),
                    structlog.stdlib.add_logger_name,
                ],
            }
        },
        "handlers": {
            "stdout": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stdout",
                "formatter": "lines",
            }
        },
        "root": {"handlers": ["stdout"], "level": level.upper()},
        "loggers": {
            "gunicorn.error": {"level": servers, "propagate": True, "handlers": []},
            "gunicorn.access": {"level": "WARNING", "propagate": True, "handlers": []},
            # It logs the addresses that it requests, and those of exported files are secret.
            "urllib3": {"level": "ERROR", "propagate": True, "handlers": []},
        },
    }
