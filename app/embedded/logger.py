"""gunicorn's log in a run, where the guide is what its user reads first."""

from __future__ import annotations

from typing import Any

from gunicorn.glogging import Logger as Default

# What it tells of an ordinary start.
_START = ("Starting gunicorn", "Listening at", "Using worker", "Booting worker")


class Logger(Default):  # type: ignore[misc]
    """Leaves out the ordinary start, and the access log: the service logs its requests itself."""

    def info(self, msg: str, *args: Any, **kwargs: Any) -> None:
        if not msg.startswith(_START):
            super().info(msg, *args, **kwargs)

    def access(self, *args: Any, **kwargs: Any) -> None:
        pass
