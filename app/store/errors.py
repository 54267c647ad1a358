"""What can go wrong with the store, and the one place that tells which it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis import exceptions

from app.store.connection.cluster import NotReplicated


class StoreError(Exception):
    """The store did not do what it was asked. Nothing may be believed written; try again.

    Attributes:
        reason: short and machine-readable, as it stands in replies, log lines and metrics.
    """

    reason = "store_error"


class StoreRefused(StoreError):
    """The store refused a command."""


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
    """It is there but can't be used as it is set up: rights, partitions, cluster or none."""

    reason = "store_misconfigured"


class StoreNotReplicated(StoreError):
    """It has the write, but too few replicas have acknowledged it in time."""

    reason = "store_not_replicated"


class StoreHeld(StoreError):
    """Writes are on hold while the store is copied or moved. Send the same again later."""

    reason = "store_held"


_BY_TYPE: tuple[tuple[type[Exception] | tuple[type[Exception], ...], type[StoreError]], ...] = (
    (exceptions.OutOfMemoryError, StoreFull),
    (
        (
            exceptions.BusyLoadingError,
            exceptions.MasterDownError,
            exceptions.ReadOnlyError,
            exceptions.ClusterDownError,
            exceptions.SlotNotCoveredError,
            exceptions.TryAgainError,
        ),
        StoreLoading,
    ),
    (NotReplicated, StoreNotReplicated),
    (
        (
            exceptions.AuthenticationError,
            exceptions.AuthorizationError,
            exceptions.NoPermissionError,
            # A cluster where none is expected.
            exceptions.MovedError,
        ),
        StoreMisconfigured,
    ),
    # The slot is moving to another node.
    (exceptions.AskError, StoreLoading),
    (exceptions.TimeoutError, StoreTimeout),
    (exceptions.ConnectionError, StoreUnreachable),
)

# What the text of an error tells.
_BY_TEXT: tuple[tuple[str, type[StoreError]], ...] = (
    ("HELD ", StoreHeld),  # see app/store/hold.py
    # A script's slot is moving to another node, or its node doesn't hear the others.
    ("access a non local key", StoreLoading),
    ("do not hash to the same slot", StoreLoading),
    ("cluster is down", StoreLoading),
    ("TRYAGAIN", StoreLoading),
    ("Cluster mode is not enabled", StoreMisconfigured),
)


@contextmanager
def translated() -> Iterator[None]:
    """Turn whatever the client library raises into a StoreError.

    The message leaves out the library's own text, which can hold the store's address.
    """
    try:
        yield
    except (redis.RedisError, exceptions.RedisClusterException) as error:
        for kinds, translation in _BY_TYPE:
            if isinstance(error, kinds):
                raise translation(translation.__doc__) from error
        if str(error).startswith("OOM"):
            raise StoreFull(StoreFull.__doc__) from error
        for text, translation in _BY_TEXT:
            if text in str(error):
                raise translation(translation.__doc__) from error
        if isinstance(error, exceptions.RedisClusterException):
            # None of the nodes that are known answers.
            raise StoreUnreachable(StoreUnreachable.__doc__) from error
        raise StoreRefused(StoreRefused.__doc__) from error
