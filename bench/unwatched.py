"""THE UNWATCHED SERVICE: the service without its metrics. The yardstick for what watching costs.

There is no setting that turns the metrics off, as nobody should; here their hook is taken out. The
sync history is turned off by its own setting, ``HISTORY_MAX_REQUESTS=0``.
"""

from __future__ import annotations

from app import create_app
from app.web import metrics

app = create_app()
_hooks = app.after_request_funcs[None]
(_counts,) = (hook for hook in _hooks if hook.__module__ == metrics.__name__)
_hooks.remove(_counts)
