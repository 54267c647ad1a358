"""How gunicorn runs the service. Settings come from the environment, see docs/configuration.md."""

import gc
import os
import sys
import time

import gevent
from gunicorn.glogging import Logger
from gunicorn.http.errors import ParseException

from app.server.gunicorn_worker import HeadHeld, Worker
from app.server.preflight import keys_in_store
from app.settings import BadSettings, Settings
from app.telemetry.logs import stdlib_config
from app.telemetry.metrics import multiprocess_dir

try:
    settings = Settings.from_environ()
    settings.check_service(keys_in_store)
except BadSettings as error:
    # One clear line each, and no traceback, for whoever starts it.
    sys.exit("\n".join(f"cohort-receiver: {line}" for line in str(error).splitlines()))

bind = f"0.0.0.0:{settings.port}"
workers = settings.web_concurrency

# Greenlets: a sender that stalls in the middle of a request costs a socket, not a thread.
# docs/decisions/workers.md has the measurement.
worker_class = Worker
worker_connections = 1000

# Amplitude's test request sends the headers api_key and app_id. gunicorn drops headers with an
# underscore, unless they are named here and the peer is trusted. Trust is then only about these
# two: no header may set the scheme, the script name or the path.
forwarder_headers = "API_KEY,APP_ID"
forwarded_allow_ips = "*"
secure_scheme_headers = {}

# The longest path names a cohort by 512 bytes and a user by 1,024, each of them as %XX.
limit_request_line = 8190

# Also the time that a request's headers may take to arrive.
keepalive = 5
# Requests in flight finish; the process is gone within 10 s of SIGTERM.
graceful_timeout = 8
timeout = 60

control_socket_disable = True
worker_tmp_dir = "/dev/shm" if sys.platform == "linux" else None  # noqa: S108  # nosec B108
logconfig_dict = stdlib_config(settings.log_level)


class QuietLogger(Logger):
    """Leaves out the access log, which would be made for every request: the service logs them."""

    def access(self, *args, **kwargs):
        pass


logger_class = QuietLogger

# Before anything that counts is imported. docs/metrics.md
metrics_folder = multiprocess_dir.prepare(os.environ)


def post_fork(server, worker):
    """Let a worker stand back from the store, and end by Ctrl-C as by SIGTERM."""
    # All workers wait for the one store: where it has to wait for a turn on their machine, all do.
    os.nice(settings.worker_nice)
    # From its first moment on. gunicorn's own way ends it in the middle of a request, and of
    # gevent's own work, which says so with a traceback.
    worker.handle_quit = worker.handle_exit


def worker_exit(server, worker):
    """Keep what a worker has counted and noted of its last requests."""
    # One that could not load the service has none.
    extensions = getattr(getattr(worker, "wsgi", None), "extensions", {})
    if extensions:
        extensions["meter"].flush()
        extensions["recorder"].finish()
        extensions["reporting"].finish(1.0)


def on_exit(server):
    """Remove what the workers have counted: the next start begins anew."""
    multiprocess_dir.remove(metrics_folder)


# What a refused request may still send on a connection that is to be kept, and in which pieces.
UNREAD_BYTES, PIECE_BYTES = 16 << 20, 1 << 16
# Longest time that one connection's requests go on without a look at the others, in seconds.
TURN_SECONDS = 0.01
# Not 0: gevent would go on among the greenlets that are ready, a thousand times, before it looks
# for what has arrived since.
A_LOOK = 1e-6
_turn_began = 0.0


def post_request(worker, req, environ, resp):
    """See to it that no connection keeps a worker to itself.

    Reading what has arrived already never waits, so a sender that is fast enough would never let
    another one have its turn: with a body that was refused and goes on, which gunicorn would read
    to its end, or with one request after another.
    """
    global _turn_began
    if resp is not None and isinstance(resp.sock, HeadHeld):
        resp.sock.flush()
    if not _has_ended(req.body, worker.cfg.keepalive):
        req.force_close()
    if time.monotonic() - _turn_began > TURN_SECONDS:
        gevent.sleep(A_LOOK)
        _turn_began = time.monotonic()


def _has_ended(body, seconds):
    """Whether a body is read to its end, of which some may still come."""
    if getattr(body.reader, "length", None) == 0:
        return True
    try:
        with gevent.Timeout(seconds, False):
            for _ in range(0, UNREAD_BYTES, PIECE_BYTES):
                if not body.read(PIECE_BYTES):
                    return True
                gevent.sleep(A_LOOK)
    except (OSError, ParseException):
        return False  # it is broken: where the next request would begin is unknown
    return False


def post_worker_init(worker):
    """Begin the background work of a worker, once it has loaded the service."""
    # Only now, as it imports what uses locks.
    from app.telemetry.metrics import exited_workers

    exited_workers.gather(metrics_folder)
    # A batch is thousands of short-lived objects and no cycle: looking for cycles each time they
    # add up, among all that the libraries hold for good, took a sixth of a worker's time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    worker.wsgi.extensions["background"].start()
    # Streams of changes never end by themselves: they must when the worker is told to.
    worker.wsgi.extensions["feed"].is_open = lambda: worker.alive
