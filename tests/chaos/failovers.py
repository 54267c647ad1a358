"""One run with failovers: the primary is stopped, killed or demoted during syncs.

Either behind Sentinels, or behind one address that leads to another server for new connections, as
a DNS name or a load balancer does, while the demoted one stays reachable on open connections.
"""

from __future__ import annotations

import random
import signal
import tempfile
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.chaos.processes import ServiceProcess
from tests.chaos.run import APP, KEY, STORE_TIMEOUT, Outcome, sync_during
from tests.support.clusters import Node, running_server
from tests.support.polling import wait_until
from tests.support.proxy import Proxy
from tests.support.sentinels import Sentinels, running_sentinels
from tests.support.stores import reserved_ports

# A 503 later than this after the new primary serves is a failure.
LONGEST_UNAVAILABLE = 5.0
# Between two failovers, so that one 503 belongs to one of them.
_REST = LONGEST_UNAVAILABLE + 2
# Long enough that the Sentinels fail over only when a primary was stopped.
_DOWN_AFTER_MS = 3000


def run(seconds: float, seed: int, *, behind_sentinels: bool, share: float = 1.0) -> Outcome:
    """Sync during failovers for about `seconds`; each kind at least once."""
    outcome = Outcome(title="failovers, " + ("Sentinels" if behind_sentinels else "one address"))
    with ExitStack() as stack:
        make = _BehindSentinels if behind_sentinels else _BehindOneAddress
        servers = stack.enter_context(make.running())
        service = stack.enter_context(_service(servers.url))
        failovers = _Failovers(servers, random.Random(seed), outcome)
        sync_during(
            lambda: failovers.run(seconds), service, servers.read_url, outcome, seed, share=share
        )
        failovers.measure()
    return outcome


class _Servers:
    """A primary and its replicas.

    Attributes:
        url: where the service connects.
        read_url: a primary, never one that was demoted: refuses connections in between.
        kinds: the ways to fail over, by name.
        served_at: when the present primary had a replica, which the service asks for, by the
            monotonic clock.
    """

    url: str
    kinds: dict[str, Callable[[], None]]

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.primary = nodes[0]
        self.served_at = 0.0
        self._reading = Proxy(("127.0.0.1", self.primary.port))
        self.read_url = f"redis://127.0.0.1:{self._reading.port}"

    def close(self) -> None:
        self._reading.close()

    @contextmanager
    def changing_primary(self) -> Iterator[None]:
        self._reading.refuse(True)
        yield
        wait_until(lambda: _serves(self.primary))
        self.served_at = time.monotonic()
        self._reading.switch(("127.0.0.1", self.primary.port))
        self._reading.refuse(False)


class _BehindSentinels(_Servers):
    def __init__(self, sentinels: Sentinels) -> None:
        super().__init__(sentinels.nodes)
        self._sentinels = sentinels
        self.url = sentinels.url
        self.kinds = {"primary killed (-9)": self._kill, "primary paused": self._pause}

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[_Servers]:
        with running_sentinels(down_after_ms=_DOWN_AFTER_MS) as sentinels:
            servers = cls(sentinels)
            try:
                yield servers
            finally:
                servers.close()

    def _kill(self) -> None:
        old = self.primary
        with self.changing_primary():
            old.kill()
            self._wait_for_successor(old)
        old.start()  # empty, and soon a replica

    def _pause(self) -> None:
        old = self.primary
        with self.changing_primary():
            old.process.send_signal(signal.SIGSTOP)
            try:
                self._wait_for_successor(old)
                # Until the other replica follows the successor, it acknowledges what a primary
                # that is back writes, and loses it afterwards.
                wait_until(lambda: _serves(self.primary))
            finally:
                old.process.send_signal(signal.SIGCONT)

    def _wait_for_successor(self, old: Node) -> None:
        wait_until(lambda: self._sentinels.primary() is not old)
        self.primary = self._sentinels.primary()


class _BehindOneAddress(_Servers):
    def __init__(self, nodes: list[Node]) -> None:
        super().__init__(nodes)
        self._address = Proxy(("127.0.0.1", self.primary.port))
        self.url = f"redis://127.0.0.1:{self._address.port}"
        self.kinds = {"primary demoted, still reachable": self._demote}

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[_Servers]:
        with running_server() as first, running_server() as second:
            second.client.replicaof("127.0.0.1", first.port)
            wait_until(lambda: _is_in_step(second))
            servers = cls([first, second])
            try:
                yield servers
            finally:
                servers.close()

    def close(self) -> None:
        self._address.close()
        super().close()

    def _demote(self) -> None:
        old = self.primary
        (new,) = (node for node in self.nodes if node is not old)
        with self.changing_primary():
            old.client.execute_command("FAILOVER", "TO", "127.0.0.1", new.port)
            wait_until(lambda: _is_primary(new))
            self.primary = new
            self._address.switch(("127.0.0.1", new.port))
        wait_until(lambda: _is_in_step(old))


def _is_primary(node: Node) -> bool:
    return str(node.client.role()[0]) == "master"


def _serves(node: Node) -> bool:
    """Whether a primary has a replica: without one, it can acknowledge nothing."""
    role = node.client.role()
    return str(role[0]) == "master" and len(role[2]) > 0


def _is_in_step(replica: Node) -> bool:
    state: dict[str, Any] = replica.client.info("replication")
    return state.get("master_link_status") == "up"


class _Failovers:
    def __init__(self, servers: _Servers, drawn: random.Random, outcome: Outcome) -> None:
        self._servers, self._drawn, self._outcome = servers, drawn, outcome
        # Of each failover, by the monotonic clock.
        self._began: list[float] = []
        self._served: list[float] = []

    def run(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        names = list(self._servers.kinds)
        while names or time.monotonic() < ends:
            threading.Event().wait(_REST + self._drawn.uniform(0, 1))
            name = names.pop() if names else self._drawn.choice(list(self._servers.kinds))
            self._began.append(time.monotonic())
            self._servers.kinds[name]()
            self._served.append(self._servers.served_at)
            self._outcome.faults[name] += 1
        threading.Event().wait(_REST)

    def measure(self) -> None:
        """How long after each failover requests were answered with a 503."""
        longest = 0.0
        for at in self._outcome.unavailable_at:
            number = bisect_right(self._began, at) - 1
            if number < 0:
                self._outcome.wrong.append("there was a 503 before the first failover")
            else:
                longest = max(longest, at - self._served[number])
        self._outcome.longest_unavailable = longest
        if longest > LONGEST_UNAVAILABLE:
            self._outcome.wrong.append(f"503 for {longest:.1f} s after the new primary served")


@contextmanager
def _service(store_url: str) -> Iterator[ServiceProcess]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        (port,) = stack.enter_context(reserved_ports(1))
        env = {
            "REDIS_URL": store_url,
            "API_KEYS": f"{APP}:{KEY}",
            "STORE_TIMEOUT_SECONDS": str(STORE_TIMEOUT),
            "STORE_WAIT_REPLICAS": "1",
            "RATE_LIMIT": "100000/second",
        }
        service = ServiceProcess(env, folder / "service.log", port)
        service.start()
        stack.callback(service.stop)
        yield service
