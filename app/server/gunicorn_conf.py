"""How gunicorn runs the service. Settings come from the environment: docs/configuration.md.

gunicorn executes this file; ``gunicorn.conf.py``, a link to it, is where it looks by default.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from app.server.connection import Limits
from app.server.gunicorn_hooks import (
    QuietLogger,
    after_fork,
    post_request,
    post_worker_init,
    worker_exit,
)
from app.server.gunicorn_worker import Worker
from app.server.preflight import keys_in_store
from app.settings import BadSettings, Settings
from app.telemetry.logs import stdlib_config
from app.telemetry.metrics import multiprocess_dir

__all__ = ["post_request", "post_worker_init", "worker_exit"]

try:
    settings = Settings.from_environ()
    settings.check_service(keys_in_store)
except BadSettings as error:
    # One clear line each, and no traceback.
    sys.exit("\n".join(f"cohort-receiver: {line}" for line in str(error).splitlines()))

for _line in settings.warnings(os.environ):
    print(f"cohort-receiver: {_line}", file=sys.stderr)  # noqa: T201

bind = f"0.0.0.0:{settings.port}"
workers = settings.web_concurrency

# Greenlets: a sender that stalls in the middle of a request costs a socket, not a thread.
# docs/decisions/workers.md has the measurement.
worker_class = Worker
worker_connections = 1000

# Amplitude's test request sends the headers api_key and app_id. gunicorn drops headers with an
# underscore unless they are named here and the peer is trusted. Trust covers these two only: no
# header may set the scheme, the script name or the path.
forwarder_headers = "API_KEY,APP_ID"
forwarded_allow_ips = "*"
secure_scheme_headers: dict[str, str] = {}

# The longest path names a cohort of 512 bytes and a user of 1,024, each byte as %XX.
limit_request_line = 8190

# Not 0, so that connections are kept open: app/server/connection.py says for how long.
keepalive = 1
# Files are sent as other replies are, under the same limits.
sendfile = False
# Requests in flight finish; the process ends within 10 s of SIGTERM.
graceful_timeout = 8
timeout = 60

control_socket_disable = True
worker_tmp_dir = "/dev/shm" if sys.platform == "linux" else None  # noqa: S108  # nosec B108
logconfig_dict = stdlib_config(settings.log_level, settings.log_format)
logger_class = QuietLogger

# Set before any metric is declared; see app/telemetry/metrics.
metrics_folder = multiprocess_dir.prepare(os.environ)


def post_fork(server: Any, worker: Any) -> None:
    limits = Limits(
        settings.keep_alive_seconds, settings.head_timeout_seconds, settings.send_timeout_seconds
    )
    after_fork(worker, settings.worker_nice, limits)


def on_exit(server: Any) -> None:
    """Remove the workers' counts: the next start begins at zero."""
    multiprocess_dir.remove(metrics_folder)


# Workers import the service themselves. If the master kept any of its modules, a HUP after a deploy
# would mix those of both versions.
for _name in [name for name in sys.modules if name == "app" or name.startswith("app.")]:
    del sys.modules[_name]
