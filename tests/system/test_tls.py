"""A store behind TLS, with a certificate that nobody else vouches for: ``rediss://``."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import redis
import trustme

from simulator import payloads
from tests.support.clusters import Cluster, running_cluster
from tests.support.effort import thorough
from tests.support.polling import wait_until
from tests.support.service import APP, running
from tests.support.stores import running_store

IDENTIFY = {"type": "identify", "userId": "ann", "traits": {"Buyers:b1": True}}


class TlsProxy:
    """Ends TLS on a free port, and hands what it holds to a store.

    Args:
        connect: makes a connection to the store.
        authority: issues the certificate; known to no system.
        names: what the certificate is good for.
    """

    def __init__(
        self, connect: Callable[[], socket.socket], authority: trustme.CA, *names: str
    ) -> None:
        self._connect = connect
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.authority = authority
        self.authority.issue_cert(*names).configure_cert(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"rediss://:@127.0.0.1:{self.port}/0"
        self.refused: list[str] = []  # handshakes that failed, and why
        self.connected = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                plain, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        try:
            client = self._context.wrap_socket(plain, server_side=True)
        except OSError as error:
            self.refused.append(str(error))
            plain.close()
            return
        self.connected += 1
        with client, self._connect() as store:
            back = threading.Thread(target=_copy, args=(store, client), daemon=True)
            back.start()
            _copy(client, store)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def tls_store(store_url: str, *names: str) -> Iterator[TlsProxy]:
    def connect() -> socket.socket:
        store = socket.socket(socket.AF_UNIX)
        store.connect(store_url.removeprefix("unix://"))
        return store

    proxy = TlsProxy(connect, trustme.CA(), *names)
    try:
        yield proxy
    finally:
        proxy.close()


@thorough
def test_tls__self_signed_and_not_to_be_verified__works(
    store_url: str, redis_client: redis.Redis
) -> None:
    with (
        tls_store(store_url, "store.example") as proxy,
        running({"REDIS_URL": proxy.url, "REDIS_TLS_VERIFY": "false"}) as service,
    ):
        ready = service.request("GET", "/readyz")
        assert (ready.status, ready.json()["status"]) == (200, "ready")
        assert service.post(IDENTIFY).status == 200
        assert proxy.connected >= 1
    assert redis_client.hgetall(f"cohorts:{{{APP}}}:user:ann") == {"Buyers:b1": "true"}


@thorough
def test_tls__self_signed__is_refused_by_default() -> None:
    with (
        # Of its own: what another test has sent may come into the history of the shared one.
        running_store() as store_url,
        redis.Redis.from_url(store_url) as client,
        tls_store(store_url, "127.0.0.1") as proxy,
        running({"REDIS_URL": proxy.url}) as service,
    ):
        ready = service.request("GET", "/readyz")
        reply = service.post(IDENTIFY)
        assert (ready.status, ready.json()["reason"]) == (503, "store_misconfigured")
        assert (reply.status, reply.json()["reason"]) == (503, "store_misconfigured")
        assert "certificate is not trusted" in reply.json()["detail"]
        assert proxy.connected == 0
        wait_until(lambda: proxy.refused)
        assert client.keys() == []


@pytest.mark.parametrize(
    ("name", "status"), [("127.0.0.1", 200), ("store.example", 503)], ids=["its own", "another's"]
)
def test_tls__own_authority__accepts_its_certificate_for_the_right_name_only(
    store_url: str, redis_client: redis.Redis, tmp_path: Path, name: str, status: int
) -> None:
    with tls_store(store_url, name) as proxy:
        proxy.authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
        env = {"REDIS_URL": proxy.url, "SSL_CERT_FILE": str(tmp_path / "authority.pem")}
        with running(env) as service:
            assert service.post(IDENTIFY).status == status
    assert redis_client.exists(f"cohorts:{{{APP}}}:user:ann") == (status == 200)


class TlsCluster:
    """A cluster each of whose nodes is reached by TLS, and tells so where the others are."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.authority = trustme.CA()
        self.proxies = []
        for node in cluster.nodes:
            connect = partial(socket.create_connection, ("127.0.0.1", node.port))
            proxy = TlsProxy(connect, self.authority, "127.0.0.1")
            self.proxies.append(proxy)
            node.client.config_set("cluster-announce-port", proxy.port)
        ports = {proxy.port for proxy in self.proxies}
        wait_until(lambda: all(self._told(node.client) == ports for node in cluster.nodes))

    @property
    def url(self) -> str:
        return self.proxies[-1].url

    @staticmethod
    def _told(client: redis.Redis) -> set[int]:
        return {int(address.rpartition(":")[2]) for address in client.cluster("NODES")}

    def close(self) -> None:
        for proxy in self.proxies:
            proxy.close()


@pytest.fixture(scope="module")
def tls_cluster() -> Iterator[TlsCluster]:
    # No replicas: they would look for their masters, without TLS, where these say that they are.
    with running_cluster(3, 0) as cluster:
        found = TlsCluster(cluster)
        try:
            yield found
        finally:
            found.close()


@pytest.mark.parametrize("trusted", [True, False], ids=["own authority", "not to be verified"])
@thorough
def test_tls__to_a_cluster__reaches_every_node_by_it(
    tls_cluster: TlsCluster, tmp_path: Path, trusted: bool
) -> None:
    tls_cluster.authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    how = (
        {"SSL_CERT_FILE": str(tmp_path / "authority.pem")}
        if trusted
        else {"REDIS_TLS_VERIFY": "false"}
    )
    env = {"REDIS_URL": tls_cluster.url, "STORE_CLUSTER": "true", "STORE_PARTITIONS": "12", **how}
    for node in tls_cluster.cluster.nodes:
        node.client.flushall()
    before = [proxy.connected for proxy in tls_cluster.proxies]
    with running(env) as service:
        ids = payloads.user_ids(300)
        reply = service.post(payloads.batch(ids, "Buyers: b1", True))
        assert (reply.status, reply.json()["changed"]) == (200, 300)
        assert service.request("GET", "/readyz").status == 200
    for node, proxy, count in zip(
        tls_cluster.cluster.nodes, tls_cluster.proxies, before, strict=True
    ):
        assert proxy.connected > count
        assert list(node.client.scan_iter(match="cohorts:*:user:*"))


@thorough
def test_tls__to_a_cluster_that_nobody_vouches_for__is_refused(tls_cluster: TlsCluster) -> None:
    for node in tls_cluster.cluster.nodes:
        node.client.flushall()
    before = [proxy.connected for proxy in tls_cluster.proxies]
    env = {"REDIS_URL": tls_cluster.url, "STORE_CLUSTER": "true"}
    with running(env) as service:
        reply = service.post(IDENTIFY)
        assert (reply.status, reply.json()["reason"]) == (503, "store_misconfigured")
    assert [proxy.connected for proxy in tls_cluster.proxies] == before
    assert not any(node.client.dbsize() for node in tls_cluster.cluster.nodes)
