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
        detail: human-readable.
        reported: what the store or its client reported, without values from the request.
        needs_detail: the reason alone does not say what to do.
    """

    reason = "store_error"
    detail = "The store failed."
    reported = ""
    needs_detail = False

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail or self.detail)

    @property
    def log_fields(self) -> dict[str, str]:
        """The cause, for log events."""
        fields = {"reason": self.reason}
        if self.needs_detail:
            fields["detail"] = str(self)
            if self.reported:
                fields["store_reported"] = self.reported
        return fields


class StoreRefused(StoreError):
    detail = "The store refused a command."
    needs_detail = True


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
    needs_detail = True


_WRONG_PASSWORD = "The store refuses the user name or password in REDIS_URL, or requires one."  # noqa: S105
_NO_PERMISSION = (
    "The store accepts the password, but its user lacks a permission that the service needs: see "
    "docs/security.md."
)
_IS_CLUSTER = "The store is a cluster: set STORE_CLUSTER=true."
_NO_CLUSTER = "The store is not a cluster, but STORE_CLUSTER is true."
_NO_DATABASE = "The store has no database with the number in REDIS_URL."


class StoreNotReplicated(StoreError):
    reason = "store_not_replicated"
    detail = "The store has the write, but too few replicas acknowledged it in time."


class StoreHeld(StoreError):
    reason = "store_held"
    detail = (
        "Writes are on hold while the store is copied or moved. Send the same request again later."
    )


class CohortPartlyDeleted(StoreError):
    """Some users of a request were written before the deletion of their cohort began."""

    reason = "cohort_partly_deleted"
    detail = "The deletion of a cohort began during the request. Send the same request again."


class Attempts:
    """Work on several apps, each of which is attempted even if the store fails for others.

    On a cluster, an app may need a node that is down.
    """

    def __init__(self) -> None:
        self._first: StoreError | None = None

    @contextmanager
    def one(self) -> Iterator[None]:
        """Attempt one app; a StoreError ends only this attempt."""
        try:
            yield
        except StoreError as error:
            self._first = self._first or error

    def raise_first(self) -> None:
        """Raise the first StoreError, if there was one."""
        if self._first is not None:
            raise self._first


_UNTRUSTED = (
    "The store's TLS certificate is not trusted. docs/deploy.md explains REDIS_TLS_VERIFY and "
    "SSL_CERT_FILE."
)
_REPORTED_LENGTH = 300
# The store is not working, which says nothing about its data: what was known before still stands.
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
    ("ACL failure in script", partial(StoreMisconfigured, _NO_PERMISSION)),  # Valkey
    ("user executing the script can't", partial(StoreMisconfigured, _NO_PERMISSION)),  # Redis
    ("DB index is out of range", partial(StoreMisconfigured, _NO_DATABASE)),
    ("MISCONF", StoreReadOnly),
    ("NOREPLICAS", StoreReadOnly),
    ("Cluster mode is not enabled", partial(StoreMisconfigured, _NO_CLUSTER)),
)


@contextmanager
def store_errors() -> Iterator[None]:
    """Raise errors of the client library as StoreErrors.

    The client's message is only in ``reported``, for the log: it may contain the store's address.
    """
    try:
        yield
    except (redis.RedisError, exceptions.RedisClusterException) as raised:
        error = raised.failure if isinstance(raised, NotResponding) else raised
        translated = _translated(error)
        translated.reported = _without_values(str(error))
        raise translated from error


def _translated(error: Exception) -> StoreError:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return StoreMisconfigured(_UNTRUSTED)
    if isinstance(error, exceptions.RedisClusterException):
        # No known node can be used. The library says "not a cluster" whenever the last node refuses
        # to list the slots, so the cause decides.
        cause = error.__cause__ or error.__context__
        found = _translated(cause) if isinstance(cause, Exception) else None
        if isinstance(found, StoreMisconfigured):
            return found
    for kinds, translation in _BY_TYPE:
        if isinstance(error, kinds):
            return translation()
    if str(error).startswith("OOM"):
        return StoreFull()
    for text, translation in _BY_TEXT:
        if text in str(error):
            return translation()
    if isinstance(error, exceptions.RedisClusterException):
        # None of the known nodes replies.
        return StoreUnreachable()
    return StoreRefused()


def _without_values(text: str) -> str:
    """An error's text, without the arguments of the command that the server or library quotes."""
    error = text.rpartition(" of pipeline caused error: ")[2]
    return error.partition(", with args beginning with")[0][:_REPORTED_LENGTH]
