"""What tells how a call came, and what the store's password may never be seen in."""

from __future__ import annotations

import pytest

from simulator.payloads import identify
from tests.support.cli import flask
from tests.support.clusters import running_cluster
from tests.support.effort import thorough
from tests.support.service import Service, running
from tests.support.stores import socket_url, start_store, store_folder

CALL = identify("u", "n: 1", True)
FORWARDED = "X-Forwarded-Proto"


def test_https__required__refuses_plain_calls_and_believes_only_trusted_proxies(
    store_url: str,
) -> None:
    def said(service: Service, *protocols: str) -> int:
        return service.post(CALL, **{FORWARDED: ", ".join(protocols)}).status

    env = {"REDIS_URL": store_url, "REQUIRE_HTTPS": "true", "PROXY_HOPS": "1"}
    with running(env) as service:
        refused = service.post(CALL)
        assert (refused.status, refused.json()["reason"]) == (403, "https_required")
        assert service.request("GET", "/login").status == 403
        assert service.request("GET", "/healthz").status == 200
        assert said(service, "https") == 200
        # Only the last one is the trusted proxy's; the sender may have written the others.
        assert said(service, "https", "http") == 403
        assert said(service, "http", "https") == 200


def test_hsts__is_sent_over_https_alone(store_url: str) -> None:
    with running({"REDIS_URL": store_url, "PROXY_HOPS": "1"}) as service:
        for path in ("/healthz", "/api/v1/cohorts", "/nowhere"):
            plain = service.request("GET", path)
            protected = service.request("GET", path, **{FORWARDED: "https"})
            assert "Strict-Transport-Security" not in plain.headers
            assert protected.headers["Strict-Transport-Security"].startswith("max-age=")


@thorough
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


SECRET = "the-password-of-the-store"
AWAY = f"rediss://somebody:{SECRET}@127.0.0.1:1/0"
ONE, MANY = {"STORE_CLUSTER": "false"}, {"STORE_CLUSTER": "true"}


@thorough
@pytest.mark.parametrize("kind", [ONE, MANY], ids=["single", "cluster"])
def test_store__that_is_away__has_its_password_told_to_nobody(kind: dict[str, str]) -> None:
    env = {"REDIS_URL": AWAY, "LOG_LEVEL": "debug", **kind}
    with running(env) as service:
        replies = [service.post(CALL), service.request("GET", "/readyz")]
        assert {reply.status for reply in replies} == {503}
    assert SECRET not in service.output() + "".join(reply.data.decode() for reply in replies)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["config"], id="config"),
        pytest.param(["cohorts", "list"], id="list", marks=thorough),
        pytest.param(["store", "check"], id="check"),
        pytest.param(
            ["store", "copy", "--to", AWAY.replace(":1/", ":2/"), "--partitions", "1"],
            id="copy",
            marks=thorough,
        ),
    ],
)
@pytest.mark.parametrize(
    "kind", [pytest.param(ONE, id="single"), pytest.param(MANY, id="cluster", marks=thorough)]
)
def test_command__with_the_store_away__does_not_tell_its_password(
    kind: dict[str, str], words: list[str]
) -> None:
    done = flask(AWAY, *words, **kind)
    assert SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@thorough
def test_cluster__whose_password_is_wrong__is_not_told_about_it() -> None:
    with running_cluster(3, 0) as cluster:
        url = cluster.url.replace("//", f"//somebody:{SECRET}@")
        with running({"REDIS_URL": url, "LOG_LEVEL": "debug", **MANY}) as service:
            reply = service.post(CALL)
            assert reply.status == 503
        done = flask(url, "store", "check", **MANY)
    assert done.returncode == 1
    assert SECRET not in service.output() + reply.data.decode() + done.stdout + done.stderr


@thorough
def test_password__with_a_sign_that_breaks_the_address__is_not_told_when_it_is_refused(
    store_url: str,
) -> None:
    url = "redis://somebody:secret#word@127.0.0.1:6379/0"
    for done in (
        flask(url, "store", "check"),
        flask(store_url, "store", "copy", "--to", url, "--partitions", "1"),
    ):
        assert done.returncode != 0
        assert "REDIS_URL: not a valid URL" in done.stdout + done.stderr
        assert "secret" not in done.stdout + done.stderr
