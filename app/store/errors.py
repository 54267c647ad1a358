"""The errors of the store, and their translation from the client library's errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import redis
from redis import exceptions

from app.store.connection.calls import NotReplicated
from app.store.connection.server import NotResponding


class StoreError(Exception):
    """The store failed. Treat it as if nothing was written, and repeat the call.

    Attributes:
        reason: machine-readable, for replies, log events and metrics.
        detail: for people.
    """

    reason = "store_error"
    detail = "The store failed."

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail or self.detail)


class StoreRefused(StoreError):
    detail = "The store refused a command."


class StoreUnreachable(StoreError):
    reason = "store_unreachable"
    detail = "The store is unreachable, or the connection broke."


class StoreTimeout(StoreError):
    reason = "store_timeout"
    detail = "The store did not reply in time. The command may still have been carried out."


class StoreFull(StoreError):
    reason = "store_full"
    detail = "The store is out of memory and accepts no writes."


class StoreReadOnly(StoreError):
    reason = "store_read_only"
    detail = "The store accepts no writes: it cannot save to disk, or lacks replicas."


class StoreLoading(StoreError):
    reason = "store_loading"
    detail = "The store is loading its data after a start, or a failover is in progress."


class StoreMisconfigured(StoreError):
    reason = "store_misconfigured"
    detail = "The store is misconfigured: check permissions, partitions, cluster mode."


_WRONG_PASSWORD = "The store refuses the user name or password in REDIS_URL, or requires one."  # noqa: S105
_NO_PERMISSION = (
    "The store accepts the password, but its user lacks a permission that the service needs. "
    "docs/security.md has the user for it."
)
_IS_CLUSTER = "The store is a cluster: set STORE_CLUSTER=true."
_NO_CLUSTER = "The store is not a cluster, but STORE_CLUSTER is true."


class StoreNotReplicated(StoreError):
    reason = "store_not_replicated"
    detail = "The store has the write, but too few replicas acknowledged it in time."


class StoreHeld(StoreError):
    reason = "store_held"
    detail = "Writes are on hold while the store is copied or moved. Send the same again later."


class CohortPartlyDeleted(StoreError):
    """Some users of a request were written before the deletion of their cohort began."""

    reason = "cohort_partly_deleted"
    detail = "The deletion of a cohort began during the request. Send the same again."


class Attempts:
    """Work on several apps, each of which is attempted though the store failed for others.

    On a cluster, one of them may need a node that is down.
    """

    def __init__(self) -> None:
        self._first: StoreError | None = None

    @contextmanager
    def one(self) -> Iterator[None]:
        """Attempt one; a StoreError ends it, and nothing else."""
        try:
            yield
        except StoreError as error:
            self._first = self._first or error

    def raise_first(self) -> None:
        """Raise the first StoreError, if there was one."""
        if self._first is not None:
            raise self._first


# The store did not reply as one that works: what was known before still stands.
UNAVAILABLE = StoreUnreachable, StoreTimeout, StoreLoading

_BY_TYPE: tuple[
    tuple[type[Exception] | tuple[type[Exception], ...], Callable[[], StoreError]], ...
] = (
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
        exceptions.NoPermissionError,
        partial(StoreMisconfigured, _NO_PERMISSION),
    ),
    (
        (exceptions.AuthenticationError, exceptions.AuthorizationError),
        partial(StoreMisconfigured, _WRONG_PASSWORD),
    ),
    (exceptions.MovedError, partial(StoreMisconfigured, _IS_CLUSTER)),
    # The slot is migrating to another node.
    (exceptions.AskError, StoreLoading),
    (exceptions.TimeoutError, StoreTimeout),
    (exceptions.ConnectionError, StoreUnreachable),
)

# Errors that differ in their text only.
_BY_TEXT: tuple[tuple[str, Callable[[], StoreError]], ...] = (
    ("HELD ", StoreHeld),  # see app/store/hold.py
    ("LATE ", StoreTimeout),  # see app/store/connection/fence.py
    # The slot of a script's keys is migrating, or its node has lost contact with the others.
    ("access a non local key", StoreLoading),
    ("do not hash to the same slot", StoreLoading),
    ("cluster is down", StoreLoading),
    ("TRYAGAIN", StoreLoading),
    # A failover ended the wait for replicas.
    ("UNBLOCKED", StoreLoading),
    ("cannot be used with replica instances", StoreLoading),
    ("MISCONF", StoreReadOnly),
    ("NOREPLICAS", StoreReadOnly),
    ("Cluster mode is not enabled", partial(StoreMisconfigured, _NO_CLUSTER)),
)


@contextmanager
def store_errors() -> Iterator[None]:
    """Raise errors of the client library as StoreErrors.

    The library's message is left out, as it may contain the store's address.
    """
    try:
        yield
    except (redis.RedisError, exceptions.RedisClusterException) as raised:
        error = raised.failure if isinstance(raised, NotResponding) else raised
        for kinds, translation in _BY_TYPE:
            if isinstance(error, kinds):
                raise translation() from error
        if str(error).startswith("OOM"):
            raise StoreFull() from error
        for text, translation in _BY_TEXT:
            if text in str(error):
                raise translation() from error
        if isinstance(error, exceptions.RedisClusterException):
            # None of the known nodes replies.
            raise StoreUnreachable() from error
        raise StoreRefused() from error
