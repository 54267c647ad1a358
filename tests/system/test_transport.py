"""What tells how a call came, and what the store's password may never be seen in."""

from __future__ import annotations

from simulator.payloads import identify
from tests.conftest import socket_url, start_store, store_folder
from tests.system.service import Service, running

CALL = identify("u", "n: 1", True)
FORWARDED = "X-Forwarded-Proto"


def test_https__required__refuses_plain_calls_and_believes_only_trusted_proxies(
    store_url: str,
) -> None:
    def said(service: Service, *protocols: str) -> int:
        return service.post(CALL, **{FORWARDED: ", ".join(protocols)}).status

    env = {"REDIS_URL": store_url, "REQUIRE_HTTPS": "true"}
    with running({**env, "PROXY_HOPS": "1"}) as service:
        refused = service.post(CALL)
        assert (refused.status, refused.json()["reason"]) == (403, "https_required")
        assert service.request("GET", "/login").status == 403
        assert service.request("GET", "/healthz").status == 200
        assert said(service, "https") == 200
        # Only the last one is the trusted proxy's; the sender may have written the others.
        assert said(service, "https", "http") == 403
        assert said(service, "http", "https") == 200
    with running(env) as service:
        assert said(service, "https") == 403


def test_hsts__is_sent_over_https_alone(store_url: str) -> None:
    with running({"REDIS_URL": store_url, "PROXY_HOPS": "1"}) as service:
        for path in ("/healthz", "/api/v1/cohorts", "/nowhere"):
            plain = service.request("GET", path)
            protected = service.request("GET", path, **{FORWARDED: "https"})
            assert "Strict-Transport-Security" not in plain.headers
            assert protected.headers["Strict-Transport-Security"].startswith("max-age=")


def test_store__whose_password_is_wrong__is_not_told_about_it() -> None:
    secret = "the-password-of-the-store"
    with store_folder() as folder:
        store = start_store(folder)
        try:
            url = f"unix://somebody:{secret}@{socket_url(folder).removeprefix('unix://')}"
            with running({"REDIS_URL": url}) as service:
                reply = service.post(CALL)
                ready = service.request("GET", "/readyz")
                assert (reply.status, ready.status) == (503, 503)
                assert reply.json()["reason"] == "store_misconfigured"
                said = reply.data + ready.data
            assert secret.encode() not in said
            assert secret not in service.output()
        finally:
            store.terminate()
            store.wait(30)
