"""A process that is killed between two of its commands to the store."""

from __future__ import annotations

from typing import Any


class KilledError(Exception):
    """Stands for the end of the process."""


def killed_at(client: Any, command: int) -> None:
    """Let a client's process be no more when it is about to send this command, from 0."""
    left = iter(range(command))

    def counted(method: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if next(left, None) is None:
                raise KilledError
            return method(*args, **options)

        return call

    for name in ("execute_command", "write", "pipeline"):
        setattr(client, name, counted(getattr(client, name)))
