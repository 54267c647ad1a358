"""``cohort-receiver notify …``"""

from __future__ import annotations

import click

from app.cli.group import EXIT_CODES, Group
from app.services import services
from app.telemetry.notifications import DeliveryFailed

notify = Group("notify", help="Notifications to NOTIFY_URL.", epilog=EXIT_CODES)


@notify.command("test", epilog=EXIT_CODES)
def send_test() -> None:
    """Send a test notification."""
    try:
        services().notifier.send_test()
    except DeliveryFailed as error:
        raise click.ClickException(f"The notification was not delivered: {error}.") from None
    click.echo("Delivered.")
