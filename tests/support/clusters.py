"""A real cluster for the tests that ask for one: three masters, each with a replica."""

from __future__ import annotations

import gc
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from tests.support.polling import DEADLINE, wait_until
from tests.support.stores import reserved_ports, store_program

SLOTS = 16384
# After this long without an answer a node is taken for dead, in ms.
NODE_TIMEOUT_MS = 1500
# Where no node is to fail: longer than a busy machine keeps one waiting.
CALM = ("--cluster-node-timeout", "10000")


class Tls(NamedTuple):
    """What servers need for TLS, as files. The embedded server's program knows none."""

    certificate: Path
    key: Path
    authority: Path

    def options(self, port: int) -> list[str]:
        """Of a server that listens for TLS on ``port`` too, and of its replication and its bus."""
        return [
            *("--tls-port", str(port), "--tls-cert-file", str(self.certificate)),
            *("--tls-key-file", str(self.key), "--tls-ca-cert-file", str(self.authority)),
            *("--tls-auth-clients", "no", "--tls-replication", "yes", "--tls-cluster", "yes"),
        ]


class Node:
    """One server of a cluster, and a client of it alone."""

    def __init__(
        self,
        folder: Path,
        ports: Sequence[int],
        options: Sequence[str],
        tls: Tls | None = None,
    ) -> None:
        self.folder = folder
        self.port, self.bus_port, tls_port = ports
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = options
        if tls:
            self.url = f"rediss://127.0.0.1:{tls_port}/0"
            self._options = [*options, *tls.options(tls_port)]
        self.start()
        retry = Retry(ConstantBackoff(0.02), 500)
        self.client: Any = redis.Redis(port=self.port, decode_responses=True, retry=retry)

    def start(self) -> None:
        command = [
            *(store_program(), "--port", str(self.port), "--cluster-port", str(self.bus_port)),
            *("--bind", "127.0.0.1", "--save", "", "--cluster-enabled", "yes"),
            *("--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--repl-diskless-sync-delay", "0"),
            *self._options,
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log)

    def kill(self) -> None:
        """As a power failure does."""
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> None:
        self.client.close()
        self.kill()


class Cluster:
    """A running cluster. Its first nodes were made masters, in the order of their slots."""

    def __init__(self, nodes: Sequence[Node], masters: int) -> None:
        self.nodes = nodes
        self.masters = nodes[:masters]
        self.url = nodes[-1].url

    def client(self) -> redis.RedisCluster:
        """A client as a downstream reader has it."""
        port = self.nodes[-1].port
        return redis.RedisCluster(host="127.0.0.1", port=port, decode_responses=True)

    def master_of(self, key: str) -> Node:
        """The node that has a key now."""
        slot = self.nodes[-1].client.execute_command("CLUSTER KEYSLOT", key)
        for first, last, (_, port, *_), *_ in self._slots():
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"no node has slot {slot}")

    def promote(self, replica: Node) -> None:
        """Make a replica the master of its slots, as a planned failover does."""
        deadline = time.monotonic() + DEADLINE

        def is_master() -> bool:
            return bool(replica.client.info("replication")["role"] == "master")

        while not is_master():
            # Servers give up an attempt after 5 s, for example if the replica lags.
            replica.client.cluster("FAILOVER")
            with suppress(AssertionError):
                wait_until(is_master, 6)
            assert time.monotonic() < deadline, "the replica was not promoted"

    def _slots(self) -> Any:
        for node in self.nodes:
            if node.process.poll() is None:
                raw: Any = redis.Redis(port=node.port, decode_responses=True)
                with raw:
                    raw.response_callbacks.clear()
                    return raw.execute_command("CLUSTER SLOTS")
        raise AssertionError("no node is running")

    def wait_until_healthy(self) -> None:
        """Wait until all slots are served, and every running replica follows its master."""
        running = [node for node in self.nodes if node.process.poll() is None]
        wait_until(lambda: all(_is_healthy(node.client, len(running)) for node in running))


def _is_healthy(client: Any, nodes: int) -> bool:
    info = client.cluster("INFO")
    if info["cluster_state"] != "ok" or int(info["cluster_known_nodes"]) < nodes:
        return False
    if client.info("persistence")["loading"]:
        return False
    replication = client.info("replication")
    return bool(replication["role"] == "master" or replication["master_link_status"] == "up")


@contextmanager
def running_server(*options: str) -> Iterator[Node]:
    """Start a single server, no cluster, on a port."""
    folder = Path(tempfile.mkdtemp(prefix="server-"))
    with reserved_ports(3) as ports:
        node = Node(folder, ports, ["--cluster-enabled", "no", *options])
        try:
            node.client.ping()
            yield node
        finally:
            node.stop()
            shutil.rmtree(folder)


@contextmanager
def running_cluster(
    masters: int = 3, replicas: int = 1, *options: str, tls: Tls | None = None
) -> Iterator[Cluster]:
    """Start a cluster of ``masters`` times ``1 + replicas`` nodes, and end it afterwards.

    Args:
        options: further options of the servers.
        tls: what they need to be reached by TLS as well; the cluster's address is for that then.
    """
    folder = Path(tempfile.mkdtemp(prefix="cluster-"))
    nodes: list[Node] = []
    stack = ExitStack()
    if not replicas:
        options = (*CALM, *options)
    try:
        count = masters * (1 + replicas)
        ports = stack.enter_context(reserved_ports(3 * count))
        for number in range(count):
            own = folder / str(number)
            own.mkdir()
            nodes.append(Node(own, ports[3 * number : 3 * number + 3], options, tls))
        cluster = Cluster(nodes, masters)
        _join(cluster)
        yield cluster
    finally:
        for node in nodes:
            node.stop()
        stack.close()
        shutil.rmtree(folder)
        # The library's client leaves connections to nodes that have left the cluster open. Found by
        # the garbage collector, they would fail whatever runs then.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


def _join(cluster: Cluster) -> None:
    """Make one cluster of single nodes, as ``redis-cli --cluster create`` does."""
    first, *others = cluster.nodes
    for epoch, node in enumerate(cluster.nodes, 1):
        node.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
    masters = len(cluster.masters)
    for number, node in enumerate(cluster.masters):
        start, end = SLOTS * number // masters, SLOTS * (number + 1) // masters - 1
        node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", start, end)
    for node in others:
        node.client.execute_command("CLUSTER", "MEET", "127.0.0.1", first.port, first.bus_port)
    count = len(cluster.nodes)
    wait_until(
        lambda: all(
            int(node.client.cluster("INFO")["cluster_known_nodes"]) == count
            for node in cluster.nodes
        )
    )
    for number, node in enumerate(cluster.nodes[masters:]):
        master = cluster.masters[number % masters].client.execute_command("CLUSTER", "MYID")
        wait_until(partial(_replicates, node, master))
    cluster.wait_until_healthy()


def _replicates(node: Node, master_id: str) -> bool:
    try:
        node.client.execute_command("CLUSTER", "REPLICATE", master_id)
    except redis.ResponseError:
        return False  # it has not heard of that master yet
    return True
