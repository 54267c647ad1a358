"""Notifications: one POST to ``NOTIFY_URL`` for each change that a growth team should know of.

They are written for people (``text``, which Slack and similar tools show) and for programs (the
other members), and signed as Standard Webhooks (standardwebhooks.com) if there is a secret.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import quote

import certifi
import orjson
import structlog
import urllib3

from app.store import (
    Attempts,
    Batch,
    Lateness,
    Loss,
    LossKind,
    Store,
    StoreError,
    changed_cohorts,
)
from app.telemetry.metrics.definitions import NOTIFICATIONS

POLL_SECONDS = 5.0
# Cohorts that one notification lists; it also has their total number.
MAX_LISTED = 20
# Up to this many cohorts, each gets a notification of its own.
MAX_SINGLE = 5
SECRET_PREFIX = "whsec_"  # noqa: S105
_TIMEOUT_SECONDS = 10.0
_REPEATED = frozenset({408, 429, 500, 502, 503, 504})
# At once, then after 2, 4 and 8 seconds.
_RETRIES = urllib3.Retry(
    total=4, backoff_factor=1, backoff_max=8, allowed_methods=None, retry_after_max=10
)
# After a notification failed with all its retries; doubled each time.
_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 30.0, 3600.0
_RECENT_MS = 3600 * 1000

_WHAT = {
    "incomplete": "is incomplete",
    "verified": "is verified again: its members were confirmed",
    "unverified": "no longer has a known gap",
    "late": "is late: its sync is overdue. It may have stopped, or nothing may have changed",
    "arriving": "is arriving again",
}
_REASONS = {
    "store_lost": "the store lost its data, so members are missing",
    "store_set_back": "the store returned to an earlier state, so changes are missing",
    "sync_failed": "a sync failed, and no retry succeeded",
    "deleted_here": "it was deleted here and arrived again, so members are missing",
    "count_differs": "its number of members differs from Amplitude's count",
}
_LOSSES = {
    LossKind.LOST: "The store lost its data",
    LossKind.SET_BACK: "The store returned to an earlier state of itself",
}


class Notification(NamedTuple):
    """One message.

    Attributes:
        id: the same in the immediate retries; a later attempt may have another one.
        type: such as ``cohort.incomplete``.
        text: human-readable.
        data: the same facts, machine-readable.
    """

    id: str
    type: str
    text: str
    data: dict[str, object]

    def body(self) -> bytes:
        """The body of the request."""
        timestamp = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        document = {"type": self.type, "timestamp": timestamp, "text": self.text}
        return orjson.dumps({**document, "data": self.data})


class DeliveryFailed(Exception):
    """A notification was not accepted. The message says why, without the address."""


class Sender:
    """Sends notifications, with retries."""

    def __init__(self, url: str, secret: str | None, retries: urllib3.Retry = _RETRIES) -> None:
        self._url = url
        self._secret = None
        if secret is not None:
            self._secret = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
        self._retries = retries
        self._http = urllib3.PoolManager(
            timeout=_TIMEOUT_SECONDS, retries=False, ca_certs=certifi.where()
        )

    def send(self, notification: Notification) -> None:
        """Send a notification.

        Raises:
            DeliveryFailed
        """
        body = notification.body()
        headers = {"Content-Type": "application/json", "User-Agent": "cohort-receiver"}
        headers |= self._signed(notification.id, body)
        retries = self._retries
        while True:
            reply = None
            try:
                reply = self._http.request(
                    *("POST", self._url),
                    body=body,
                    headers=headers,
                    redirect=False,
                    preload_content=False,
                )
                reply.close()  # its body may have no end
            except urllib3.exceptions.HTTPError as error:
                if not retries.total:
                    raise DeliveryFailed(f"no reply ({type(error).__name__})") from None
                retries = retries.increment("POST", self._url, error=error)
            else:
                if 200 <= reply.status < 300:
                    return
                if reply.status not in _REPEATED or not retries.total:
                    raise DeliveryFailed(f"status {reply.status}")
                retries = retries.increment("POST", self._url, response=reply)
            try:
                retries.sleep(reply)
            except (urllib3.exceptions.HTTPError, ValueError, OverflowError):
                retries.sleep()  # its Retry-After is unusable: "soon", or the year 99999

    def _signed(self, message_id: str, body: bytes) -> dict[str, str]:
        sent = str(int(time.time()))
        headers = {"webhook-id": message_id, "webhook-timestamp": sent}
        if self._secret is not None:
            content = f"{message_id}.{sent}.".encode() + body
            digest = hmac.new(self._secret, content, hashlib.sha256).digest()
            headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
        return headers


class Notifier:
    """Sends one notification about each change, however many workers there are; after a failure
    of the store, it may be sent again.

    Args:
        sender: None to do nothing.
        public_url: where the dashboard is, for links.
    """

    def __init__(self, store: Store, sender: Sender | None, public_url: str | None) -> None:
        self._store = store
        self._base_url = (public_url or "").rstrip("/")
        self._sender = sender
        self._due = 0.0
        self._pause = _PAUSE_SECONDS
        self._log = structlog.get_logger()

    def work(self) -> None:
        """Send what is new; called every second. After a failure, wait before the next attempt."""
        if self._sender is None or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + POLL_SECONDS
        try:
            attempts = Attempts()
            for app_id in self._store.apps():
                with attempts.one():
                    if self._store.news.lease(app_id):
                        self._notify(app_id)
            attempts.raise_first()
        except StoreError as error:
            self._log.warning("notifications paused", **error.log_fields)
        except DeliveryFailed as error:
            NOTIFICATIONS.labels("failed").inc()
            self._log.error("notification failed", error=str(error), next_in=self._pause)
            self._due = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, _MAX_PAUSE_SECONDS)
        else:
            self._pause = _PAUSE_SECONDS

    def send_test(self) -> None:
        """Send a test.

        Raises:
            DeliveryFailed
        """
        if self._sender is None:
            raise DeliveryFailed("NOTIFY_URL is not set")
        text = "This is a test from Cohort Receiver. Notifications work."
        test = Notification(f"test-{time.time_ns()}", "test", text, {})
        self._sender.send(test)

    def _notify(self, app_id: str) -> None:
        news, partitions = self._store.news, range(self._store.keys.partitions)
        for loss in self._store.losses.of([app_id]):
            if loss.found_ms != news.last_loss_ms(app_id):
                if not loss.acknowledged:
                    # The record of the transitions that were sent may be lost too: skip those
                    # before the loss, but not those that it causes. If NOTIFY_URL was set long
                    # after the loss, skip all but those of the last hour.
                    recent = int(self._store.now() * 1000) - _RECENT_MS
                    for partition in partitions:
                        news.begin(app_id, partition, max(loss.found_ms, recent))
                    self._send(app_id, self._loss(loss))
                news.note_loss(app_id, loss.found_ms)
        for partition in partitions:
            while (batch := news.batch(app_id, partition)).transitions:
                self._notify_transitions(app_id, partition, batch)
            for lateness in news.lateness(app_id, partition):
                self._notify_lateness(app_id, partition, lateness)

    def _notify_transitions(self, app_id: str, partition: int, batch: Batch) -> None:
        # Each is noted, so that a failure of the next one does not repeat it. The batch is noted
        # before the first is sent, so that a repeat of the first has the same id.
        first, last, sent = batch.transitions[0].id, batch.transitions[-1].id, 0
        self._store.news.note_sent(app_id, partition, batch, batch.sent)
        for what, reason, cohort_ids in changed_cohorts(batch.transitions):
            for some in _groups(cohort_ids):
                sent += 1
                if sent <= batch.sent:
                    continue
                message_id = f"{app_id}-{partition}-{first}-{sent}"
                self._send(app_id, self._cohorts(app_id, message_id, what, reason, some))
                self._store.news.note_sent(app_id, partition, batch, sent)
        self._store.news.passed_over(app_id, partition, last)

    def _notify_lateness(self, app_id: str, partition: int, lateness: Lateness) -> None:
        note = self._store.news.note_lateness
        for what in ("late", "arriving"):
            at = time.time_ns() // 10**9
            for number, some in enumerate(_groups(getattr(lateness, what))):
                message_id = f"{app_id}-{partition}-{what}-{at}-{number}"
                self._send(app_id, self._cohorts(app_id, message_id, what, "", some))
                note(app_id, partition, what, some)
        if lateness.gone:
            note(app_id, partition, "gone", lateness.gone)

    def _send(self, app_id: str, notification: Notification) -> None:
        assert self._sender is not None
        self._sender.send(notification)
        NOTIFICATIONS.labels("sent").inc()
        self._store.news.lease(app_id)

    def _loss(self, loss: Loss) -> Notification:
        text = (
            f"{_LOSSES[loss.kind]} (app {_escaped(loss.app_id)}). Its cohorts are incomplete until "
            f"they are resynced, imported or reconciled. {self._link('/')}"
        )
        data = {"app": loss.app_id, "kind": loss.kind, "at": loss.found_ms}
        return Notification(f"{loss.app_id}-loss-{loss.found_ms}", "store.lost", text.strip(), data)

    def _cohorts(
        self, app_id: str, message_id: str, what: str, reason: str, cohort_ids: Sequence[str]
    ) -> Notification:
        """A notification about some cohorts."""
        listed = [*cohort_ids[:MAX_LISTED]]
        names = {record.id: record.trait for record in self._store.registry.records(app_id, listed)}
        words = _WHAT[what] + (f": {_REASONS.get(reason, reason)}" if reason else "")
        data: dict[str, object] = {
            "app": app_id,
            "cohorts": [{"id": one, "name": names.get(one, "")} for one in listed],
            "count": len(cohort_ids),
        }
        if reason:
            data["reason"] = reason
        text = self._text(cohort_ids, names, words)
        return Notification(message_id, f"cohort.{what}", text, data)

    def _text(self, cohort_ids: Sequence[str], names: Mapping[str, str], words: str) -> str:
        if len(cohort_ids) == 1:
            (one,) = cohort_ids
            path = f"/cohort?id={quote(one, safe='')}"
            return f"{_escaped(names.get(one) or one)} {words}. {self._link(path)}".strip()
        listed = ", ".join(_escaped(names.get(one) or one) for one in cohort_ids[:MAX_LISTED])
        end = ", …" if len(cohort_ids) > MAX_LISTED else "."
        text = f"{len(cohort_ids)} cohorts: {listed}{end} Each {words}. {self._link('/')}"
        return text.strip()

    def _link(self, path: str) -> str:
        return f"{self._base_url}{path}" if self._base_url else ""


def _groups(cohort_ids: list[str]) -> list[list[str]]:
    """Cohorts that share a notification: all of them, if there are many."""
    if len(cohort_ids) <= MAX_SINGLE:
        return [[one] for one in cohort_ids]
    return [cohort_ids]


def _escaped(text: str) -> str:
    """A name as text for Slack and similar tools: it must not mention anybody or hide a link."""
    shown = "".join(c if c.isprintable() else " " for c in text[:200])
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
