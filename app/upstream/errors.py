"""What can go wrong between the service and Amplitude's Behavioral Cohorts API.

No error contains text from outside: replies and addresses may hold keys or signatures.
"""

from __future__ import annotations


class UpstreamError(Exception):
    """A call to Amplitude's API failed, or cannot be made.

    Attributes:
        reason: machine-readable, for replies, log events and metrics.
        detail: what is wrong and what to do about it, for people.
    """

    reason = "upstream_failed"
    detail = "Amplitude's API failed."

    def __init__(self) -> None:
        super().__init__(self.detail)


class UpstreamUnreachable(UpstreamError):
    reason = "upstream_unreachable"
    detail = (
        "Amplitude's API is unreachable. Check AMPLITUDE_REGION and AMPLITUDE_URL, and that this "
        "machine may connect to it."
    )


class UpstreamUnavailable(UpstreamError):
    reason = "upstream_unavailable"
    detail = "Amplitude's API replies with server errors. Try again later."


class UpstreamForbidden(UpstreamError):
    reason = "upstream_forbidden"
    detail = (
        "Amplitude refuses the keys. AMPLITUDE_KEYS needs the project's API key and its secret "
        "key, and AMPLITUDE_REGION the project's region."
    )


class UpstreamThrottled(UpstreamError):
    reason = "upstream_throttled"
    detail = "Amplitude's API still limits the rate of requests after a long wait."


class UpstreamBadReply(UpstreamError):
    reason = "upstream_bad_reply"
    detail = "Amplitude's API replied with something unexpected. Check AMPLITUDE_URL."


class UpstreamNotListed(UpstreamError):
    reason = "upstream_not_listed"
    detail = (
        "Amplitude does not list this cohort. It is not discoverable, was deleted, or belongs to a "
        "different project."
    )


class UpstreamTooLarge(UpstreamError):
    reason = "upstream_too_large"
    detail = "Amplitude exports cohorts of at most 2,000,000 users. Resync this cohort instead."


class UpstreamExportFailed(UpstreamError):
    reason = "upstream_export_failed"
    detail = "Amplitude could not export the cohort. Try again later."


class UpstreamExportTimeout(UpstreamError):
    reason = "upstream_export_timeout"
    detail = "Amplitude did not finish the export in time. Try again later."


class UpstreamFileIncomplete(UpstreamError):
    reason = "upstream_file_incomplete"
    detail = (
        "The exported file is incomplete: the download kept breaking off, or the file has far "
        "fewer rows than the cohort has users. Nothing was changed."
    )


class UpstreamFileInvalid(UpstreamError):
    reason = "upstream_file_invalid"
    detail = "The exported file is not the expected CSV, or lacks the column. Nothing was changed."


class ExportBudgetSpent(UpstreamError):
    reason = "export_budget_spent"
    detail = (
        "This month's exports are used up: AMPLITUDE_EXPORTS_PER_MONTH of this service, or "
        "Amplitude's own limit."
    )


class ReconcileRunning(UpstreamError):
    reason = "reconcile_running"
    detail = "A reconcile of this app is already running. One runs at a time."


class UpstreamNotConfigured(UpstreamError):
    reason = "upstream_not_configured"
    detail = "AMPLITUDE_KEYS has no keys for this app."


class NoDiskSpace(UpstreamError):
    reason = "no_disk_space"
    detail = "The temporary directory is full or not writable. Set TMPDIR to another one."


class ResyncOpen(UpstreamError):
    reason = "resync_open"
    detail = "A resync or import of this cohort is open. Finish or abort it first."


class ReconcileEnded(UpstreamError):
    reason = "reconcile_interrupted"
    detail = (
        "The reconcile ended early, because its process did. If it was replacing members, the "
        "background work completes that; otherwise start it again."
    )
