"""A primary, its replicas and the Sentinels that watch them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis

from tests.support.clusters import Node, running_server
from tests.support.polling import wait_until
from tests.support.stores import reserved_ports, store_program

SERVICE = "cohorts"


class Sentinels:
    """Three Sentinels and the servers that they watch, of which the first began as the primary."""

    def __init__(
        self, nodes: list[Node], ports: list[int], folder: Path, password: str, down_after_ms: int
    ) -> None:
        self.nodes = nodes
        self.hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        self.url = f"redis+sentinel://{self.hosts}/{SERVICE}/0"
        if password:
            self.url += f"?sentinel_password={password}"
        self.clients = [
            redis.Redis(port=port, password=password or None, decode_responses=True)
            for port in ports
        ]
        self._processes: list[subprocess.Popen[bytes]] = []
        config = (
            f"sentinel monitor {SERVICE} 127.0.0.1 {nodes[0].port} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} {down_after_ms}\n"
            f"sentinel failover-timeout {SERVICE} 3000\n"
        )
        if password:
            config += f"requirepass {password}\nsentinel sentinel-pass {password}\n"
        for port in ports:
            path = folder / f"{port}.conf"
            path.write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\n{config}")
            command = [store_program(), str(path), "--sentinel"]
            with (folder / f"{port}.log").open("wb") as log:
                self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        wait_until(self._know_all)

    def primary(self) -> Node:
        """The server that most recently became the primary, by the first Sentinel."""
        _, port = self.clients[0].sentinel_get_master_addr_by_name(SERVICE)  # type: ignore[no-untyped-call]
        return next(node for node in self.nodes if node.port == port)

    def stop_one(self) -> None:
        """Kill the first Sentinel."""
        self._processes[0].kill()
        self._processes[0].wait(30)
        self.clients.pop(0).close()

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for process in self._processes:
            process.kill()
            process.wait(30)

    def _know_all(self) -> bool:
        """Whether each Sentinel knows the others and the replicas, so that a failover can begin."""
        try:
            states = [client.sentinel_master(SERVICE) for client in self.clients]  # type: ignore[no-untyped-call]
        except redis.RedisError:
            return False
        return all(
            state["num-other-sentinels"] == len(self.clients) - 1
            and state["num-slaves"] == len(self.nodes) - 1
            for state in states
        )


@contextmanager
def running_sentinels(
    *, replicas: int = 2, password: str = "", down_after_ms: int = 1000
) -> Iterator[Sentinels]:
    """Start a primary, its replicas and three Sentinels, and end them afterwards.

    Args:
        password: of the Sentinels.
        down_after_ms: a primary that has not replied for this long is down. A busy machine may
            keep a healthy one waiting for a second.
    """
    folder = Path(tempfile.mkdtemp(prefix="sentinels-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        nodes = [stack.enter_context(running_server()) for _ in range(1 + replicas)]
        for node in nodes[1:]:
            node.client.replicaof("127.0.0.1", nodes[0].port)
        for node in nodes[1:]:
            wait_until(
                lambda node=node: node.client.info("replication")["master_link_status"] == "up"
            )
        ports = stack.enter_context(reserved_ports(3))
        sentinels = Sentinels(nodes, ports, folder, password, down_after_ms)
        stack.callback(sentinels.close)
        yield sentinels
