"""Runs the bare view as the service's gunicorn.conf.py would, without the hooks that need it."""

from pathlib import Path
from runpy import run_path

globals().update(run_path(str(Path("gunicorn.conf.py").resolve())))


def post_worker_init(worker: object) -> None:
    """There is no background work to start."""


def worker_exit(server: object, worker: object) -> None:
    """There is nothing to flush."""
