"""How the last polls of Amplitude's own record went, and what never arrived here."""

from __future__ import annotations

from flask import Blueprint, Response, g
from marshmallow import fields

from app.auth.authenticate import READ, requires
from app.errors import UpstreamUnset
from app.services import services
from app.store.upstream import PollStatus
from app.web.api.lookup import store
from app.web.http.contract import describes, send
from app.web.http.replies import Reply, count, ms, text


class AbsentReply(Reply):
    """A cohort that Amplitude syncs but that never arrived here."""

    id = text("The cohort's id.", example="abc123")
    name = text("Its name in Amplitude.", example="Power users")
    size = count("Its size in Amplitude; null if unknown.", allow_none=True, example=6512)
    frequency = text("Of the sync, such as `minute`, `hourly` or `daily`.", example="hourly")
    lastSuccess = ms("Last successful sync; null for none", allow_none=True)
    lastFailure = ms("Last failed sync; null for none", allow_none=True)
    targets = text("The destinations that it is synced to.", example="Cohort Receiver")


class UpstreamPollsReply(Reply):
    """The polls of Amplitude's own record."""

    polledAt = ms("The last successful poll; null if none is known", allow_none=True)
    failedAt = ms("The last failed poll, if it is later; else null", allow_none=True)
    failure = text("Why that failed; else null.", allow_none=True, example=None)
    listed = count("Cohorts that Amplitude lists.", example=48)
    behind = count("Cohorts here whose sync is overdue according to the record.", example=0)
    absent = fields.List(
        fields.Nested(AbsentReply),
        required=True,
        metadata={"description": "Synced but never received here, at most 100."},
    )
    absentTotal = count("How many of these there are.", example=1)
    exports = count("Exports of this month, by reconciling.", example=3)


def poll_status(app_id: str) -> PollStatus:
    """How the last polls went, without cohorts that have arrived since."""
    status = store().upstream.poll_status(app_id)
    ids = [cohort["id"] for cohort in status.absent]
    arrived = {record.id for record in store().registry.records(app_id, ids)}
    return status._replace(
        absent=[cohort for cohort in status.absent if cohort["id"] not in arrived],
        absent_total=status.absent_total - len(arrived),
    )


blueprint = Blueprint("upstream", __name__, url_prefix="/api/v1")


@blueprint.get("/upstream")
@requires(READ)
@describes(UpstreamUnset, reply=UpstreamPollsReply())
def get_upstream() -> Response:
    """How the last polls went, and which cohorts never arrived here."""
    app_id = g.caller.app_id
    if not services().reconciler.is_configured(app_id):
        raise UpstreamUnset()
    status = poll_status(app_id)
    return send(
        {
            "polledAt": status.polled_ms,
            "failedAt": status.failed_ms,
            "failure": status.failure,
            "listed": status.listed,
            "behind": status.behind,
            "absent": status.absent,
            "absentTotal": status.absent_total,
            "exports": store().upstream.exports(app_id),
        }
    )
