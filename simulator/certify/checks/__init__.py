"""All checks, in the order they run."""

from __future__ import annotations

from ..model import Check
from . import credentials, lists, network, properties, statuses, syncs, validation, webhooks

CHECKS: tuple[Check, ...] = (
    *credentials.group,
    *properties.group,
    *validation.group,
    *lists.group,
    *webhooks.group,
    *network.group,
    *syncs.group,
    *statuses.group,  # last: it makes the receiver throttle
)
