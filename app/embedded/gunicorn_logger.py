"""gunicorn's log under ``make run``: without routine lines, so that the guide is seen first."""

from __future__ import annotations

from typing import Any

from gunicorn.glogging import Logger


class WarningsOnly(Logger):  # type: ignore[misc]
    """Omits the start and the stop, and the access log: the service logs its requests itself."""

    def info(self, *args: Any, **kwargs: Any) -> None:
        pass

    def access(self, *args: Any, **kwargs: Any) -> None:
        pass
