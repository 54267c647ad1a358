"""Cohort Webhooks: one message about the users who entered or left one cohort."""

from __future__ import annotations

from flask import Blueprint, Response, current_app

from app.auth import INGEST, requires
from app.settings import Settings
from app.web import ingest
from app.web.body import load, read_json
from app.web.contract import describes
from app.web.replies import AppliedReply
from app.web.schemas import limited
from app.web.webhook_schema import Webhook, WebhookSchema

blueprint = Blueprint("webhook", __name__)


@blueprint.post("/api/v1/integration/amplitude/webhook")
@requires(INGEST)
@describes(*ingest.PROBLEMS, body=(WebhookSchema(),), reply=AppliedReply())
def receive_webhook() -> Response:
    """Take one message."""
    settings: Settings = current_app.extensions["settings"]
    webhook: Webhook = load(limited(WebhookSchema, settings.max_batch_users), read_json())
    return ingest.apply(
        webhook.identifies,
        way="webhook",
        place="users.{}.user_id",
        message_id=webhook.message_id,
    )
