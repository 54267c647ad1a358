"""What can go wrong with the store, and the one place that tells which it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis import exceptions


class StoreError(Exception):
    """The store did not do what it was asked. Nothing may be believed written; try again.

    Attributes:
        reason: short and machine-readable, as it stands in replies, log lines and metrics.
    """

    reason = "store_error"


class StoreUnreachable(StoreError):
    """No connection, or it broke."""

    reason = "store_unreachable"


class StoreTimeout(StoreError):
    """No answer in time. What was asked for may still have been done."""

    reason = "store_timeout"


class StoreFull(StoreError):
    """Out of memory: it takes no writes."""

    reason = "store_full"


class StoreLoading(StoreError):
    """It is reading its data after a start, or waits for a failover."""

    reason = "store_loading"


class StoreMisconfigured(StoreError):
    """It is there but can't be used as it is set up: rights, partitions, type of a key."""

    reason = "store_misconfigured"


_BY_TYPE: tuple[tuple[type[Exception] | tuple[type[Exception], ...], type[StoreError]], ...] = (
    (exceptions.OutOfMemoryError, StoreFull),
    (
        (
            exceptions.BusyLoadingError,
            exceptions.MasterDownError,
            exceptions.ReadOnlyError,
            exceptions.ClusterDownError,
            exceptions.TryAgainError,
        ),
        StoreLoading,
    ),
    (
        (
            exceptions.AuthenticationError,
            exceptions.AuthorizationError,
            exceptions.NoPermissionError,
        ),
        StoreMisconfigured,
    ),
    (exceptions.TimeoutError, StoreTimeout),
    (exceptions.ConnectionError, StoreUnreachable),
)


@contextmanager
def translated() -> Iterator[None]:
    """Turn whatever the client library raises into a StoreError.

    The message leaves out the library's own text, which can hold the store's address.
    """
    try:
        yield
    except redis.RedisError as error:
        for kinds, translation in _BY_TYPE:
            if isinstance(error, kinds):
                raise translation(translation.__doc__) from error
        if str(error).startswith("OOM"):
            raise StoreFull(StoreFull.__doc__) from error
        raise StoreError("The store refused a command.") from error
