"""Declarations of all metrics; ``make docs`` writes the table in docs/metrics.md from them.

The values of every label are bounded by the code or the settings: callers cannot add any.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import CollectorRegistry

# A single identify takes about a millisecond, a batch of 10,000 about a hundred. Two of the bounds
# are limits that the benchmark checks: 0.15 and 1 s.
BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)

# Metrics that this process counts; with several workers, in files that they share.
REGISTRY = CollectorRegistry()

REQUESTS = Counter(
    "cohort_receiver_requests",
    "Requests with a reply. route is the path with names in place of values, or none if no route "
    "matched; reason is that of the error, or none.",
    ["method", "route", "status", "reason"],
    registry=REGISTRY,
)
REQUEST_SECONDS = Histogram(
    "cohort_receiver_request_seconds",
    "Time until the reply was ready.",
    ["source"],
    buckets=BUCKETS_SECONDS,
    registry=REGISTRY,
)
USERS_ACCEPTED = Counter(
    "cohort_receiver_users_accepted",
    "Users accepted, whether or not anything changed.",
    ["source"],
    registry=REGISTRY,
)
USERS_CHANGED = Counter(
    "cohort_receiver_users_changed",
    "Users whose traits or memberships changed.",
    ["source"],
    registry=REGISTRY,
)
USERS_REJECTED = Counter(
    "cohort_receiver_users_rejected",
    "Users rejected from a well-formed request.",
    ["source", "reason"],
    registry=REGISTRY,
)
STORE_SECONDS = Histogram(
    "cohort_receiver_store_seconds",
    "Time to apply a request to the store, including the wait for a connection.",
    ["source"],
    buckets=BUCKETS_SECONDS,
    registry=REGISTRY,
)
BACKGROUND_FAILURES = Counter(
    "cohort_receiver_background_failures",
    "Unexpected errors in background work: renames, deletions, resyncs, and all that runs every "
    "second, such as polls, notifications and the sync history.",
    registry=REGISTRY,
)
UPSTREAM_FAILURES = Counter(
    "cohort_receiver_upstream_failures",
    "Polls of Amplitude's own record that failed.",
    ["reason"],
    registry=REGISTRY,
)

NOTIFICATIONS = Counter(
    "cohort_receiver_notifications",
    "Notifications by result: sent or failed.",
    ["result"],
    registry=REGISTRY,
)


class ScrapedGauge(NamedTuple):
    """A gauge that is read when the metrics are scraped: from the store or from the system."""

    name: str
    help: str
    labels: tuple[str, ...] = ()

    def family(self, value: float | None = None) -> GaugeMetricFamily:
        """The gauge for one scrape, with its value unless it has labels."""
        return GaugeMetricFamily(self.name, self.help, value, self.labels or None)


STORE_UP = ScrapedGauge("cohort_receiver_store_up", "1 while the store can be read, else 0.")
STORE_PING_SECONDS = ScrapedGauge(
    "cohort_receiver_store_ping_seconds", "Response time of the store at the last check."
)
STORE_REFUSES_WRITES = ScrapedGauge(
    "cohort_receiver_store_refuses_writes",
    "1 while the store refuses writes for this reason: store_full, store_read_only.",
    ("reason",),
)
STORE_MEMORY = ScrapedGauge("cohort_receiver_store_memory_bytes", "Memory used by the store.")
STORE_MEMORY_LIMIT = ScrapedGauge(
    "cohort_receiver_store_memory_limit_bytes", "The store's maxmemory; 0 if unlimited."
)
STORE_EVICTED = ScrapedGauge(
    "cohort_receiver_store_evicted_keys",
    "Keys evicted by the store since it started.",
)
STORE_EVICTS = ScrapedGauge(
    "cohort_receiver_store_may_evict",
    "1 if the store evicts keys when full (maxmemory is set, and its policy is not noeviction), "
    "else 0.",
)
COHORTS = ScrapedGauge(
    "cohort_receiver_cohorts",
    "Cohorts of the first hundred apps by freshness: fresh, late (overdue, by its cadence or by "
    "Amplitude's own record), never (no sync has named a user yet).",
    ("freshness",),
)
COMPLETENESS = ScrapedGauge(
    "cohort_receiver_cohorts_by_completeness",
    "Cohorts of the first hundred apps by completeness: verified, unverified, incomplete.",
    ("completeness",),
)
INCOMPLETE = ScrapedGauge(
    "cohort_receiver_incomplete_cohorts",
    "Incomplete cohorts of the first hundred apps by reason; one with two reasons counts twice.",
    ("reason",),
)
STORE_LOSSES = ScrapedGauge(
    "cohort_receiver_store_losses",
    "Apps, of the first hundred, with a loss of data that no administrator has acknowledged, by "
    "kind: lost, set_back.",
    ("kind",),
)
STORE_PERSISTENT = ScrapedGauge(
    "cohort_receiver_store_persistent",
    "1 if the store keeps its data on disk, 0 if not; absent if unknown.",
)
LONGEST_LATE = ScrapedGauge(
    "cohort_receiver_longest_late_seconds",
    "How long the most overdue cohort of the first hundred apps has been late; 0 if none is.",
)
JOBS = ScrapedGauge(
    "cohort_receiver_jobs",
    "Pending renames and deletions, counted per partition.",
)
KEY_EXPIRES = ScrapedGauge(
    "cohort_receiver_key_expiry_timestamp_seconds",
    "When the first of the API keys used in the last day expires; absent if none does.",
)
UPSTREAM_POLLED = ScrapedGauge(
    "cohort_receiver_upstream_poll_timestamp_seconds",
    "When Amplitude's own record was last read: the earliest of all apps in AMPLITUDE_KEYS; 0 if "
    "no time is known for one of them. Absent without AMPLITUDE_KEYS.",
)
UPSTREAM_EXPORTS = ScrapedGauge(
    "cohort_receiver_upstream_exports",
    "Exports that reconciling has used this month, for the app that used most. Absent without "
    "AMPLITUDE_KEYS.",
)
UPSTREAM_ABSENT = ScrapedGauge(
    "cohort_receiver_upstream_absent_cohorts",
    "Cohorts that Amplitude syncs but that never arrived here, of all apps. Absent without "
    "AMPLITUDE_KEYS.",
)
UPSTREAM_BEHIND = ScrapedGauge(
    "cohort_receiver_upstream_behind_cohorts",
    "Cohorts whose sync is overdue according to Amplitude's own record, of all apps. Absent "
    "without AMPLITUDE_KEYS.",
)

BUILD_INFO = ScrapedGauge(
    "cohort_receiver_build_info",
    "1, with the versions of the service and of Python.",
    ("version", "python"),
)
WORKER_MEMORY = ScrapedGauge(
    "cohort_receiver_worker_resident_memory_bytes",
    "Resident memory of each worker, numbered from the oldest. Absent where there is no /proc.",
    ("worker",),
)
WORKER_CPU = ScrapedGauge(
    "cohort_receiver_worker_cpu_seconds",
    "CPU time that each worker has used. Absent where there is no /proc.",
    ("worker",),
)
WORKER_FILES = ScrapedGauge(
    "cohort_receiver_worker_open_fds",
    "Open file descriptors of each worker. Absent where there is no /proc.",
    ("worker",),
)
WORKER_STARTED = ScrapedGauge(
    "cohort_receiver_worker_start_time_seconds",
    "When each worker started, in seconds since the epoch. Absent where there is no /proc.",
    ("worker",),
)

COUNTED: tuple[Counter | Histogram, ...] = (
    REQUESTS,
    REQUEST_SECONDS,
    USERS_ACCEPTED,
    USERS_CHANGED,
    USERS_REJECTED,
    STORE_SECONDS,
    BACKGROUND_FAILURES,
    UPSTREAM_FAILURES,
    NOTIFICATIONS,
)
STORE_GAUGES = (
    STORE_UP,
    STORE_PING_SECONDS,
    STORE_REFUSES_WRITES,
    STORE_MEMORY,
    STORE_MEMORY_LIMIT,
    STORE_EVICTED,
    STORE_EVICTS,
    COHORTS,
    COMPLETENESS,
    INCOMPLETE,
    STORE_LOSSES,
    STORE_PERSISTENT,
    LONGEST_LATE,
    JOBS,
    KEY_EXPIRES,
    UPSTREAM_POLLED,
    UPSTREAM_EXPORTS,
    UPSTREAM_ABSENT,
    UPSTREAM_BEHIND,
)

PROCESS_GAUGES = (BUILD_INFO, WORKER_MEMORY, WORKER_CPU, WORKER_FILES, WORKER_STARTED)


def samples() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Name, type, labels and help of every metric; a counter's name is that of its samples."""
    for metric in COUNTED:
        (family,) = metric.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield name, family.type, tuple(metric._labelnames), family.documentation
    for gauge in (*STORE_GAUGES, *PROCESS_GAUGES):
        yield gauge.name, "gauge", gauge.labels, gauge.help


def reference() -> str:
    """The table of all metrics, as Markdown."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for name, kind, labels, text in samples():
        shown = ", ".join(f"`{label}`" for label in labels)
        rows.append(f"| `{name}` | {kind} | {shown} | {text} |")
    return "\n".join(rows) + "\n"
