"""Every metric of the service, declared once. docs/metrics.md is made from this file.

No label holds what a caller chose: the values of each are bounded by the code, or by the settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import Counter, Histogram
from prometheus_client.registry import CollectorRegistry

# Seconds. A single identify takes about a millisecond, a batch of 10,000 some hundred; the bars
# that the service is held to lie at 0.15 and 1 s.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)

# What this process counts. Where workers share a folder, the values lie there.
COUNTED = CollectorRegistry()

REQUESTS = Counter(
    "cohort_receiver_requests",
    "Requests that were answered. route is the path with names for its values, or none; reason is "
    "that of the error, or none.",
    ["method", "route", "status", "reason"],
    registry=COUNTED,
)
REQUEST_SECONDS = Histogram(
    "cohort_receiver_request_seconds",
    "Time until the reply to a request was ready, by source, or by kind of call where it has none.",
    ["source"],
    buckets=SECONDS,
    registry=COUNTED,
)
USERS_ACCEPTED = Counter(
    "cohort_receiver_users_accepted",
    "Users whose statements were accepted, changed or not.",
    ["source"],
    registry=COUNTED,
)
USERS_CHANGED = Counter(
    "cohort_receiver_users_changed",
    "Users whose traits or memberships are different since.",
    ["source"],
    registry=COUNTED,
)
USERS_REJECTED = Counter(
    "cohort_receiver_users_rejected",
    "Users who were left out of a request that was well-formed.",
    ["source", "reason"],
    registry=COUNTED,
)
STORE_SECONDS = Histogram(
    "cohort_receiver_store_seconds",
    "Time that applying a request took, waiting for a connection to the store included.",
    ["source"],
    buckets=SECONDS,
    registry=COUNTED,
)
BACKGROUND_FAILURES = Counter(
    "cohort_receiver_background_failures",
    "Rounds of background work (renames, deletions) that ended in an unexpected error.",
    registry=COUNTED,
)


class Asked(NamedTuple):
    """A gauge whose value is asked for when the metrics are."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


STORE_UP = Asked("cohort_receiver_store_up", "1 while the store answers and can be used, else 0.")
STORE_PING_SECONDS = Asked(
    "cohort_receiver_store_ping_seconds", "Time that the store took to answer the last look at it."
)
STORE_MEMORY = Asked("cohort_receiver_store_memory_bytes", "Memory that the store uses.")
STORE_MEMORY_LIMIT = Asked(
    "cohort_receiver_store_memory_limit_bytes", "The store's maxmemory; 0 where it has none."
)
STORE_EVICTED = Asked(
    "cohort_receiver_store_evicted_keys",
    "Keys that the store has dropped since its start because it was full.",
)
STORE_EVICTS = Asked(
    "cohort_receiver_store_may_evict",
    "1 where the store's maxmemory-policy lets it drop data, 0 where it is noeviction.",
)
COHORTS = Asked(
    "cohort_receiver_cohorts",
    "Cohorts of all apps by freshness: fresh, late (not received for longer than is usual for "
    "them), never (made known, but no users came yet).",
    ("freshness",),
)
LONGEST_LATE = Asked(
    "cohort_receiver_longest_late_seconds",
    "For how long the cohort that is most overdue has been late; 0 where none is.",
)
JOBS = Asked(
    "cohort_receiver_jobs",
    "Renames and deletions that wait or are being worked on; each partition counts.",
)
KEY_EXPIRES = Asked(
    "cohort_receiver_key_expiry_timestamp_seconds",
    "When the first of those keys expires that were used in the last day; not there where none "
    "of them does.",
)

ASKED = tuple(value for value in list(globals().values()) if isinstance(value, Asked))


def samples() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Name, type, labels and help of every metric; a counter's name is that of its samples."""
    for metric in list(globals().values()):
        if isinstance(metric, Counter | Histogram):
            (family,) = metric.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            yield name, family.type, tuple(metric._labelnames), family.documentation
    for asked in ASKED:
        yield asked.name, "gauge", asked.labels, asked.help


def reference() -> str:
    """The table of all metrics, as Markdown."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for name, kind, labels, text in samples():
        shown = ", ".join(f"`{label}`" for label in labels)
        rows.append(f"| `{name}` | {kind} | {shown} | {text} |")
    return "\n".join(rows) + "\n"
