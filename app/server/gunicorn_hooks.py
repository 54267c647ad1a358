"""What gunicorn calls as workers start, answer and end. ``gunicorn.conf.py`` names these."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import Any

import gevent
from gunicorn.glogging import Logger
from gunicorn.http.errors import ParseException

from app.server.gunicorn_worker import HeadHeld

# What a refused request may still send on a connection that is kept open, and the pieces that it
# is read in.
UNREAD_BYTES, PIECE_BYTES = 16 << 20, 1 << 16
# How long the requests of one connection may follow each other before the others get a turn.
TURN_SECONDS = 0.01
# Not 0: gevent would run up to a thousand ready greenlets before it looks for new input.
_YIELD_SECONDS = 1e-6
_turn_began = 0.0


class QuietLogger(Logger):  # type: ignore[misc]  # without types
    """Writes no access log: the service logs each request itself."""

    def access(self, *args: Any, **kwargs: Any) -> None:
        pass


def after_fork(worker: Any, niceness: int) -> None:
    """Give way to the store, and end on Ctrl-C as on SIGTERM."""
    # All workers wait for the one store: when it waits for a CPU on their machine, all of them do.
    os.nice(niceness)
    # From the first moment on. gunicorn's own handler ends the worker in the middle of a request
    # and of gevent's own work, with a traceback.
    worker.handle_quit = worker.handle_exit


def post_worker_init(worker: Any) -> None:
    """Start the background work of a worker that has loaded the service."""
    # Imported late because it uses locks.
    from app.services import services
    from app.telemetry.metrics import exited_workers
    from app.telemetry.metrics.multiprocess_dir import VARIABLE

    if folder := os.environ.get(VARIABLE):
        exited_workers.merge(Path(folder))
    # A batch makes thousands of short-lived objects and no cycles. Looking for cycles each time,
    # among everything that the libraries keep, took a sixth of a worker's time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    parts = services(worker.wsgi)
    parts.background.start()
    # Streams of changes never end by themselves: they must end with the worker.
    parts.change_feed.is_open = lambda: worker.alive


def worker_exit(server: Any, worker: Any) -> None:
    """Write what a worker has counted and recorded of its last requests."""
    app = getattr(worker, "wsgi", None)
    if app is None:  # it could not load the service
        return
    from app.services import services
    from app.telemetry import sentry

    parts = services(app)
    parts.meter.flush()
    parts.sync_recorder.finish()
    sentry.finish(1.0)


def post_request(worker: Any, req: Any, environ: Any, resp: Any) -> None:
    """Keep one connection from occupying the worker.

    Reading input that has already arrived never yields, so a fast sender would never let another
    one have a turn: neither one who goes on sending a body that was refused, which gunicorn would
    read to its end, nor one who sends one request after another.
    """
    global _turn_began
    if resp is not None and isinstance(resp.sock, HeadHeld):
        resp.sock.flush()
    if not _has_ended(req.body, worker.cfg.keepalive):
        req.force_close()
    if time.monotonic() - _turn_began > TURN_SECONDS:
        gevent.sleep(_YIELD_SECONDS)
        _turn_began = time.monotonic()


def _has_ended(body: Any, seconds: float) -> bool:
    """Read the rest of a body, within limits. Returns False if there is still more."""
    if getattr(body.reader, "length", None) == 0:
        return True
    try:
        with gevent.Timeout(seconds, False):  # type: ignore[arg-type]
            for _ in range(0, UNREAD_BYTES, PIECE_BYTES):
                if not body.read(PIECE_BYTES):
                    return True
                gevent.sleep(_YIELD_SECONDS)
    except (OSError, ParseException):
        return False  # broken: where the next request would begin is unknown
    return False
