"""Which files get mistakes, and which tests are to notice them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Area(NamedTuple):
    """Files that are tested together.

    Attributes:
        files: patterns, from the root of the checkout.
        tests: modules and folders, the fastest first: the first failure ends a run.
    """

    files: tuple[str, ...]
    tests: tuple[str, ...]

    def paths(self, root: Path) -> list[str]:
        """The files in a checkout, sorted."""
        found = {path for pattern in self.files for path in root.glob(pattern)}
        return sorted(path.relative_to(root).as_posix() for path in found)


_INGEST = ("tests/unit/web/ingest", "tests/integration/web/ingest")
_HISTORY = (
    "tests/unit/store/test_sync_batches.py",
    "tests/integration/store/test_sync_history.py",
    "tests/integration/store/test_left_out.py",
    "tests/integration/store/test_hold.py",
    "tests/integration/telemetry/test_sync_recorder.py",
    "tests/integration/store/test_retention.py",
)

AREAS = {
    "cohorts": Area(
        ("app/cohorts/*.py",),
        (
            "tests/unit/cohorts",
            "tests/unit/test_errors.py",
            "tests/unit/upstream",
            "tests/integration/store/test_completeness.py",
            "tests/integration/store/test_resyncs.py",
            "tests/integration/telemetry/test_sync_recorder.py",
            "tests/integration/upstream/test_poller.py",
            "tests/integration/upstream/test_reconcile.py",
            "tests/integration/store/test_jobs.py",
            "tests/integration/store/test_sync_history.py",
            "tests/integration/auth/test_member_import.py",
            "tests/integration/web/api",
            *_INGEST,
            "tests/integration/web/dashboard",
        ),
    ),
    "schemas": Area(
        ("app/web/ingest/*_schema.py", "app/web/ingest/webhook_body.py"),
        (*_INGEST, "tests/unit/web/openapi", "tests/integration/web/openapi"),
    ),
    "auth": Area(
        ("app/auth/*.py",),
        (
            "tests/unit/auth",
            "tests/integration/auth",
            "tests/integration/web/ingest/test_identify.py",
            "tests/integration/web/http/test_request_log.py",
            "tests/integration/web/test_apps.py",
            "tests/integration/web/test_store_refuses_writes.py",
            "tests/integration/web/test_loss.py",
            "tests/integration/web/api/test_resyncs.py",
            "tests/integration/web/api/test_replication.py",
            "tests/integration/web/dashboard/test_resyncs.py",
            "tests/integration/web/dashboard/test_views.py",
        ),
    ),
    "bodies": Area(
        ("app/web/http/body.py",),
        (
            "tests/unit/web/http/test_body.py",
            "tests/integration/web/http",
            "tests/integration/web/ingest/test_identify.py",
            "tests/integration/web/ingest/test_webhook.py",
            "tests/integration/web/api/test_resyncs.py",
            "tests/integration/telemetry/test_sync_recorder.py",
        ),
    ),
    "paths": Area(
        ("app/web/http/raw_paths.py",),
        (
            "tests/unit/web/http/test_raw_paths.py",
            "tests/integration/web/api",
            "tests/integration/web/ingest",
        ),
    ),
    "pool": Area(
        ("app/store/connection/pool.py",),
        (
            "tests/unit/store/connection",
            "tests/integration/store/connection/test_pool.py",
            "tests/integration/store/connection/test_silence.py",
            "tests/integration/store/connection/test_failover.py",
            "tests/integration/store/connection/test_fence.py",
            "tests/integration/store/connection/test_sentinel.py",
            "tests/integration/web/api/test_replication.py",
            "tests/integration/store/test_blocking.py",
            "tests/integration/store/connection/test_dead_master.py",
            "tests/integration/store/connection/test_cluster.py",
        ),
    ),
    "fair-queue": Area(
        ("app/web/http/fair_queue.py",),
        (
            "tests/unit/web/http/test_fair_queue.py",
            "tests/integration/web/http",
            "tests/integration/web/ingest/test_apply.py",
            "tests/integration/web/api/test_cohorts.py",
        ),
    ),
    "history": Area(
        (
            "app/telemetry/sync_recorder.py",
            "app/store/sync_history.py",
            "app/store/sync_batches.py",
            "app/store/size_history.py",
        ),
        _HISTORY,
    ),
    "follower": Area(
        ("reader/cohort_reader/follower.py",),
        (
            "tests/unit/reader",
            "tests/integration/reader/test_follower_loss.py",
            "tests/integration/reader/test_follow.py",
            "tests/integration/reader/test_acl.py",
            "tests/integration/reader/test_reader_on_cluster.py",
            "tests/integration/reader/test_sentinel.py",
            "tests/integration/reader/test_worker.py",
        ),
    ),
    "lua": Area(
        ("app/store/lua/*.lua",),
        (
            "tests/integration/store/test_order.py",
            "tests/integration/web/ingest/test_message_ids.py",
            "tests/integration/store/test_rename.py",
            "tests/integration/store/test_deletion.py",
            "tests/integration/store/test_jobs.py",
            "tests/integration/store/test_retention.py",
            "tests/integration/store/test_resyncs.py",
            "tests/integration/store/test_completeness.py",
            *_HISTORY,
            "tests/integration/store",
            *_INGEST,
            "tests/integration/web",
            "tests/integration/telemetry",
            "tests/integration/auth",
            "tests/integration/upstream",
            "tests/integration/server",
        ),
    ),
}
