"""Errors, and which of the client's errors mean that the store is unavailable."""

from __future__ import annotations

from redis import exceptions


class StoreUnavailable(exceptions.ConnectionError):
    """The store is unavailable, was not called after failures, or holds an unfinished copy."""


class UnknownCohort(LookupError):
    """The cohort is not in the store: never received, deleted or lost."""


class UnknownApp(UnknownCohort):
    """The store has nothing for this app: wrong app, prefix, database or store."""


# The store is unavailable now, but may be back later.
UNAVAILABLE_ERRORS = (
    exceptions.ConnectionError,  # including "loading": the store is reading its data
    exceptions.TimeoutError,
    exceptions.MasterDownError,
    exceptions.ReadOnlyError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    exceptions.OutOfMemoryError,
    exceptions.RedisClusterException,  # no node of a cluster answers
)


def describe(error: BaseException | None) -> str:
    """The type and message. ``repr()`` of the client's errors has no message."""
    return f"{type(error).__name__}: {error}"
