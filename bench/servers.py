"""Starts what is measured: stores, gunicorns, and processes that call the store directly."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import redis

from bench.atomic_step import AtomicStep
from bench.generator import Address, Result
from tests.support.clusters import Node, running_cluster, running_server

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 60.0
# The append-only file is not rewritten during a run: when that happens is chance, and would hit
# one contestant and not another.
_DURABLE = {
    "--appendonly": "yes",
    "--appendfsync": "everysec",
    "--auto-aof-rewrite-percentage": "0",
    "--lazyfree-lazy-user-flush": "no",
}


class Store:
    """The store of one contestant: a single server, or the nodes of a cluster."""

    def __init__(
        self, url: str, masters: Sequence[Node], replicas: Sequence[Node], is_cluster: bool
    ) -> None:
        self.url, self._masters, self._replicas = url, masters, replicas
        self._is_cluster = is_cluster
        self.client: redis.Redis = masters[0].client

    def restart(self) -> None:
        """Start over with a new, empty process at the same address; a cluster is only emptied.

        A server that was emptied again and again has fragmented memory: after a dozen loads it was
        a quarter slower than one that has only grown, as a store does.
        """
        if self._is_cluster:
            self.empty()
            return
        node = self._masters[0]
        node.stop()
        shutil.rmtree(node.folder / "appendonlydir")
        node.start()
        self.client.ping()

    def empty(self) -> None:
        """Remove everything."""
        for node in self._masters:
            node.client.flushall()

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """The masters' processes."""
        return [node.process for node in self._masters]

    def cpu_seconds(self) -> tuple[list[float], float]:
        """CPU used so far by each master, and by all replicas."""
        return [*map(_node_cpu, self._masters)], sum(map(_node_cpu, self._replicas))

    def used_memory(self) -> int:
        """Bytes, on all masters."""
        return sum(int(node.client.info("memory")["used_memory"]) for node in self._masters)

    def keys(self) -> int:
        """The number of keys: of users, and a few others."""
        return sum(int(node.client.dbsize()) for node in self._masters)


@contextmanager
def running_store(masters: int = 0, replicas: int = 0) -> Iterator[Store]:
    """A fresh store with an append-only file, over TCP: one server, or a cluster of ``masters``."""
    options = [word for option in _DURABLE.items() for word in option]
    with ExitStack() as stack:
        if masters:
            cluster = stack.enter_context(running_cluster(masters, replicas, *options))
            yield Store(cluster.url, cluster.masters, cluster.nodes[masters:], True)
        else:
            node = stack.enter_context(running_server(*options))
            yield Store(node.url, [node], [], False)


class Gunicorn:
    """A running gunicorn: its address and its processes."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log
        self.address: Address = ("127.0.0.1", self._port())
        self.master = psutil.Process(process.pid)

    def _port(self) -> int:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            _, found, rest = self._log.read_text().partition("Listening at: http://")
            if found and " " in rest:
                return int(rest.split(" ", 1)[0].rpartition(":")[2])
            time.sleep(0.02)
        raise RuntimeError(f"gunicorn did not start:\n{self.log()}")

    def log(self) -> str:
        """The end of its output."""
        return self._log.read_text()[-2000:]

    def _processes(self) -> list[psutil.Process]:
        return [self.master, *self.master.children()]

    def cpu_seconds(self) -> float:
        """CPU used so far by all its processes."""
        return sum(map(_cpu, self._processes()))

    def resident_bytes(self) -> int:
        """Resident memory of all its processes."""
        return sum(process.memory_info().rss for process in self._processes())


@contextmanager
def running_gunicorn(
    app: str, *options: str, root: Path, environment: Mapping[str, str]
) -> Iterator[Gunicorn]:
    """Start ``gunicorn app`` in ``root``, with its ``gunicorn.conf.py`` if it has one."""
    folder = Path(tempfile.mkdtemp(prefix="bench-gunicorn-"))
    clean = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": str(root),
        "PORT": "0",
        "WEB_CONCURRENCY": "2",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("gunicorn")), app, *options],
            cwd=root,
            env={**clean, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Gunicorn(process, folder / "log")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder)


class StoreCallers:
    """Processes that call the atomic step as fast as the store replies, each one call at a time."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = connections

    def prepare(self, user_ids: Sequence[str], batch: int) -> None:
        """Prepare calls that add ``user_ids`` to a cohort, ``batch`` at a time."""
        for number, connection in enumerate(self._connections):
            connection.send((user_ids[number :: len(self._connections)], batch))
        for connection in self._connections:
            connection.recv()

    def run(self, seconds: float) -> Result:
        """Make the prepared calls, for at most ``seconds``."""
        result, began = Result(), time.perf_counter()
        for connection in self._connections:
            connection.send(seconds)
        for connection in self._connections:
            latencies, cpu_seconds = connection.recv()
            result.latencies += latencies
            result.cpu_seconds += cpu_seconds
        result.seconds = time.perf_counter() - began
        return result


@contextmanager
def running_store_callers(count: int, environment: Mapping[str, str]) -> Iterator[StoreCallers]:
    """``count`` processes that use the store as the settings in ``environment`` say."""
    with ExitStack() as stack:
        connections = []
        for _ in range(count):
            connection = stack.enter_context(running_process(_call_store, dict(environment)))
            connections.append(connection)
        yield StoreCallers(connections)


@contextmanager
def running_process(target: object, *args: object) -> Iterator[Connection]:
    """Run ``target(*args, connection)`` in a process; it ends when its connection is closed."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(*args, theirs), daemon=True)  # type: ignore[arg-type]
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join(10)
        if process.is_alive():
            process.kill()


def _call_store(environment: Mapping[str, str], commands: Connection) -> None:
    step = AtomicStep(environment)
    while True:
        try:
            user_ids, batch = commands.recv()
        except EOFError:
            return
        calls = [
            step.prepare(user_ids[start : start + batch])
            for start in range(0, len(user_ids) - batch + 1, batch)
        ]
        step.connect()
        commands.send("ready")
        seconds = commands.recv()
        latencies = []
        cpu = time.process_time()
        until = time.perf_counter() + seconds
        for call in calls:
            started = time.perf_counter()
            if started >= until:
                break
            step.apply(call)
            latencies.append(time.perf_counter() - started)
        commands.send((latencies, time.process_time() - cpu))


def machine_cpu_seconds() -> float:
    """CPU used so far by all processes of the machine."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _node_cpu(node: Node) -> float:
    return _cpu(psutil.Process(node.process.pid))
