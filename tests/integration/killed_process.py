"""A process that is killed between two of its commands to the store."""

from __future__ import annotations

from typing import Any


class KilledError(Exception):
    """Stands for the end of the process."""


def killed_at(client: Any, command: int) -> None:
    """Let a client's process be no more when it is about to send this command, from 0."""
    left = iter(range(command))
    send, pipeline = client.execute_command, client.pipeline

    def one_less() -> None:
        if next(left, None) is None:
            raise KilledError

    def execute_command(*args: Any, **options: Any) -> Any:
        one_less()
        return send(*args, **options)

    def make_pipeline(*args: Any, **options: Any) -> Any:
        one_less()
        return pipeline(*args, **options)

    client.execute_command, client.pipeline = execute_command, make_pipeline
