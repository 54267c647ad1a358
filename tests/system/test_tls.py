"""A store behind TLS, with a certificate that nobody else vouches for: ``rediss://``."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
import trustme

from tests.system.service import APP, running

IDENTIFY = {"type": "identify", "userId": "ann", "traits": {"Buyers:b1": True}}


class TlsProxy:
    """Ends TLS on a free port, and hands what it holds to a Unix socket.

    Args:
        socket_path: where to.
        names: what the certificate is good for.

    Attributes:
        authority: who has issued the certificate; known to no system.
    """

    def __init__(self, socket_path: str, *names: str) -> None:
        self._socket_path = socket_path
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.authority = trustme.CA()
        self.authority.issue_cert(*names).configure_cert(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"rediss://:@127.0.0.1:{self._listener.getsockname()[1]}/0"
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
        with client, socket.socket(socket.AF_UNIX) as store:
            store.connect(self._socket_path)
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
    proxy = TlsProxy(store_url.removeprefix("unix://"), *names)
    try:
        yield proxy
    finally:
        proxy.close()


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


@pytest.mark.parametrize("env", [{"REDIS_TLS_VERIFY": "true"}, {}], ids=["true", "not set"])
def test_tls__self_signed_and_to_be_verified__is_refused(
    store_url: str, redis_client: redis.Redis, env: dict[str, str]
) -> None:
    with (
        tls_store(store_url, "127.0.0.1") as proxy,
        running({"REDIS_URL": proxy.url, **env}) as service,
    ):
        ready = service.request("GET", "/readyz")
        reply = service.post(IDENTIFY)
        assert (ready.status, ready.json()["reason"]) == (503, "store_unreachable")
        assert (reply.status, reply.json()["reason"]) == (503, "store_unreachable")
        assert proxy.connected == 0
        assert proxy.refused
    assert redis_client.keys() == []


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
