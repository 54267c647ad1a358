"""Gauges of the version and of gunicorn's workers, read when the metrics are scraped."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app import __version__
from app.telemetry.metrics import definitions

_PROC = Path("/proc")


class _Worker(NamedTuple):
    """What the system knows of a process."""

    pid: int
    started: float
    memory: int
    cpu: float
    files: int


class ProcessGauges(Collector):
    """Gauges of this service's workers: the processes that this one's parent has started.

    Only Linux has ``/proc``; elsewhere, the version is the only gauge.
    """

    def collect(self) -> Iterable[GaugeMetricFamily]:
        info = definitions.BUILD_INFO.family()
        info.add_metric([__version__, platform.python_version()], 1)
        yield info
        workers = sorted(_workers(os.getppid()), key=lambda worker: (worker.started, worker.pid))
        for gauge, field in (
            (definitions.WORKER_MEMORY, "memory"),
            (definitions.WORKER_CPU, "cpu"),
            (definitions.WORKER_FILES, "files"),
            (definitions.WORKER_STARTED, "started"),
        ):
            family = gauge.family()
            for number, worker in enumerate(workers, 1):
                family.add_metric([str(number)], getattr(worker, field))
            yield family


def _workers(parent: int) -> Iterator[_Worker]:
    """The processes that a process has started. They may end at any moment."""
    try:
        ids = (_PROC / str(parent) / "task" / str(parent) / "children").read_text().split()
        since_boot = float((_PROC / "uptime").read_text().split()[0])
    except OSError:
        return
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    for pid in ids:
        with suppress(OSError):
            # After the name, which may contain anything; see proc_pid_stat(5).
            fields = (_PROC / pid / "stat").read_text().rpartition(")")[2].split()
            cpu, started = int(fields[11]) + int(fields[12]), int(fields[19])
            yield _Worker(
                pid=int(pid),
                started=time.time() - since_boot + started / ticks,
                memory=int(fields[21]) * page,
                cpu=cpu / ticks,
                files=len(os.listdir(_PROC / pid / "fd")),
            )
