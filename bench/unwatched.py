"""THE UNWATCHED SERVICE: the service without its metrics. The yardstick for what watching costs.

There is no setting that turns the metrics off, as nobody should; here they are not told of any
request. The sync history is turned off by its own setting, ``HISTORY_MAX_REQUESTS=0``.
"""

from __future__ import annotations

from app import create_app
from app.telemetry.metrics.meter import Meter
from app.telemetry.request_event import Answered, Listener
from app.web.api import metrics


def counts_nothing(meter: Meter) -> Listener:
    """Stands for :func:`app.web.api.metrics.counting`."""

    def ignore(answered: Answered) -> None:
        pass

    return ignore


metrics.counting = counts_nothing
app = create_app()
