"""Cohort Webhooks: one message about the users who entered or left one cohort."""

from __future__ import annotations

from flask import Blueprint, Response

from app.auth.authenticate import INGEST, requires
from app.errors import InvalidJson, InvalidPayload
from app.services import services
from app.web.http.body import decoded, is_small, keep_refused, load, read_decompressed
from app.web.http.contract import describes
from app.web.http.fields import limited
from app.web.ingest.apply import PROBLEMS, apply
from app.web.ingest.replies import AppliedReply, applied
from app.web.ingest.webhook_body import decode_message
from app.web.ingest.webhook_schema import Webhook, WebhookSchema

blueprint = Blueprint("webhook", __name__)

# A message may be this many times as large as other bodies: users carry up to 50 properties.
BODY_LIMITS = 2


@blueprint.post("/api/v1/integration/amplitude/webhook")
@requires(INGEST)
@describes(*PROBLEMS, body=(WebhookSchema(),), reply=AppliedReply())
def receive_webhook() -> Response:
    """Apply one message."""
    webhook = _read_message()
    result = apply(
        webhook.identifies,
        source=blueprint.name,
        user_place="users.{}.user_id".format,
        message_id=webhook.message_id,
    )
    return applied(result)


def _read_message() -> Webhook:
    """The message. Its raw body can be freed before the store is called, which may take long."""
    settings = services().settings
    raw = read_decompressed(BODY_LIMITS * settings.max_body_bytes)
    try:
        body = decoded(raw) if is_small(raw) else decode_message(raw, settings.max_batch_users)
    except (InvalidJson, InvalidPayload):
        keep_refused(raw)
        raise
    webhook: Webhook = load(limited(WebhookSchema, settings.max_batch_users), body)
    return webhook
