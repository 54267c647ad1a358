"""Cohort Webhooks: one message about the users who entered or left one cohort."""

from __future__ import annotations

from flask import Blueprint, Response

from app.auth.authenticate import INGEST, requires
from app.services import services
from app.web.http.body import load, read_json
from app.web.http.contract import describes
from app.web.http.fields import limited
from app.web.ingest.apply import PROBLEMS, apply
from app.web.ingest.replies import AppliedReply, applied
from app.web.ingest.webhook_schema import Webhook, WebhookSchema

blueprint = Blueprint("webhook", __name__)


@blueprint.post("/api/v1/integration/amplitude/webhook")
@requires(INGEST)
@describes(*PROBLEMS, body=(WebhookSchema(),), reply=AppliedReply())
def receive_webhook() -> Response:
    """Apply one message."""
    schema = limited(WebhookSchema, services().settings.max_batch_users)
    webhook: Webhook = load(schema, read_json())
    result = apply(
        webhook.identifies,
        source=blueprint.name,
        user_place="users.{}.user_id".format,
        message_id=webhook.message_id,
    )
    return applied(result)
