"""gunicorn's server hooks, which ``gunicorn.conf.py`` sets, and its logger."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import Any

import gevent
from gunicorn.glogging import Logger
from gunicorn.http.errors import ParseException

from app.server.connection import Limits
from app.server.gunicorn_worker import BufferedHead

# A connection is kept open only if the unread rest of a refused body is at most this long.
MAX_UNREAD_BYTES, CHUNK_BYTES = 16 << 20, 1 << 16
# How long requests of one connection may follow each other before other connections get a turn.
TURN_SECONDS = 0.01
# Not 0: gevent would run up to a thousand ready greenlets before it polls for new input.
_YIELD_SECONDS = 1e-6
_turn_began = 0.0


class QuietLogger(Logger):  # type: ignore[misc]  # without types
    """A logger without an access log: the service logs each request itself."""

    def access(self, *args: Any, **kwargs: Any) -> None:
        pass


def after_fork(worker: Any, niceness: int, limits: Limits) -> None:
    """Lower the worker's priority, and make it exit on SIGINT as gracefully as on SIGTERM.

    Args:
        limits: of the connections of its clients.
    """
    worker.limits = limits
    # All workers wait for the store: if it has to wait for a CPU of this machine, they all do.
    os.nice(niceness)
    # gunicorn's own handler would interrupt the current request with a traceback.
    worker.handle_quit = worker.handle_exit


def post_worker_init(worker: Any) -> None:
    """Start the background work of a worker that has loaded the application."""
    # Imported late: it uses locks, which gevent has patched by now.
    from app.services import services
    from app.telemetry.metrics import exited_workers
    from app.telemetry.metrics.multiprocess_dir import VARIABLE

    if folder := os.environ.get(VARIABLE):
        exited_workers.merge(Path(folder))
    # Requests create many short-lived objects but no cycles: collect rarely, and not the objects
    # that stay for the lifetime of the worker.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    parts = services(worker.wsgi)
    if folder and parts.store_watch.memory.path is None:
        # So that a worker starts with the marks of the one that it replaces.
        parts.store_watch.memory.path = Path(folder) / "store-marks.json"
    parts.background.start()
    parts.background.spawn(parts.reconciler.remove_abandoned)
    # Change streams have no end of their own: close them when the worker shuts down.
    parts.change_feed.is_open = lambda: worker.alive


def worker_exit(server: Any, worker: Any) -> None:
    """Flush the counts, history and error reports of the last requests."""
    app = getattr(worker, "wsgi", None)
    if app is None:  # it failed to load the application
        return
    from app.services import services
    from app.telemetry import sentry

    parts = services(app)
    parts.meter.flush()
    parts.sync_recorder.finish()
    parts.sync_problems.finish()
    sentry.finish(1.0)


def post_request(worker: Any, req: Any, environ: Any, resp: Any) -> None:
    """Prevent one connection from occupying the worker.

    Reading input that has already arrived never yields to other greenlets. So two kinds of fast
    senders would block all others: one that keeps sending a body that was refused, which gunicorn
    reads to its end, and one that sends request after request.
    """
    global _turn_began
    if resp is not None and isinstance(resp.sock, BufferedHead):
        resp.sock.flush()
    if not _has_ended(req.body, worker.limits.head):
        req.force_close()
    if time.monotonic() - _turn_began > TURN_SECONDS:
        gevent.sleep(_YIELD_SECONDS)
        _turn_began = time.monotonic()


def _has_ended(body: Any, seconds: float) -> bool:
    """Read the rest of a body, within limits. Returns False if there is more."""
    if getattr(body.reader, "length", None) == 0:
        return True
    try:
        with gevent.Timeout(seconds, False):  # type: ignore[arg-type]
            for _ in range(0, MAX_UNREAD_BYTES, CHUNK_BYTES):
                if not body.read(CHUNK_BYTES):
                    return True
                gevent.sleep(_YIELD_SECONDS)
    except (OSError, ParseException):
        return False  # broken: the start of the next request is unknown
    return False
