"""A store that does not reply, as while it is paused or its machine is gone."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count

import pytest
from flask import Flask

from app.services import services
from app.settings import Settings
from app.store import Store, StoreError, connect
from simulator import payloads
from tests.integration.conftest import APP, caller
from tests.support.clusters import running_cluster
from tests.support.effort import thorough
from tests.support.polling import wait_until
from tests.support.stores import socket_url, start_store, store_folder

TIMEOUT = 0.6
PARTITIONS = 12
BODY = payloads.identify("ann", "[Amplitude] Power users: abc123", True)


@contextmanager
def paused(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Connections stay open and are accepted, but nothing gets a reply."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def fails_at_once(call: Callable[[], object]) -> bool:
    """Whether a call reports the missing reply without having waited for it."""
    began = time.monotonic()
    with pytest.raises(StoreError) as caught:
        call()
    assert caught.value.reason == "store_timeout"
    return time.monotonic() - began < TIMEOUT / 2


def test_calls__once_the_store_does_not_reply__fail_at_once_until_it_does(
    make_app: Callable[..., Flask],
) -> None:
    with store_folder() as folder:
        process = start_store(folder)
        try:
            app = make_app(redis_url=socket_url(folder), store_timeout_seconds=TIMEOUT)
            http = caller(app)
            assert http.post(payloads.COHORT_PATH, json=BODY).status_code == 200
            with paused(process):
                wait_until(lambda: fails_at_once(services(app).store.server_info.ping))

                def requests_fail_at_once() -> bool:
                    began = time.monotonic()
                    for _ in range(20):
                        reply = http.post(payloads.COHORT_PATH, json=BODY)
                        assert (reply.status_code, reply.json["reason"]) == (503, "store_timeout")
                        assert http.get("/readyz").status_code == 503
                    return time.monotonic() - began < TIMEOUT

                wait_until(requests_fail_at_once)
            wait_until(lambda: http.post(payloads.COHORT_PATH, json=BODY).status_code == 200, 5)
        finally:
            process.kill()
            process.wait(30)


def test_calls__once_the_store_accepts_no_connection__fail_at_once() -> None:
    """As when its machine is gone: nothing refuses the connection either."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as full:
        others = [socket.socket() for _ in range(4)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        url = f"redis://127.0.0.1:{full.getsockname()[1]}"
        store = Store(connect(Settings(redis_url=url, store_timeout_seconds=TIMEOUT)))
        wait_until(lambda: fails_at_once(store.server_info.ping))
        for other in others:
            other.close()


@thorough
def test_calls__while_one_node_of_a_cluster_does_not_reply__use_the_others_and_its_successor() -> (
    None
):
    with running_cluster(3, 1) as cluster:
        settings = Settings(
            redis_url=cluster.url,
            store_cluster=True,
            store_partitions=PARTITIONS,
            store_timeout_seconds=TIMEOUT,
            store_connections=2,
        )
        with connect(settings) as client:
            store = Store(client, partitions=PARTITIONS)
            silent = cluster.masters[0]

            def register(user: str) -> None:
                store.registered_users.add(APP, [user])

            def user_of(is_silent: bool) -> str:
                key = store.keys.changes
                return next(
                    user
                    for user in (f"user-{n}" for n in count())
                    if (cluster.master_of(key(APP, store.keys.partition(user))) is silent)
                    == is_silent
                )

            here, elsewhere = user_of(True), user_of(False)
            register(here)
            register(elsewhere)
            with paused(silent.process):
                wait_until(lambda: fails_at_once(lambda: register(here)))

                def is_quick_elsewhere() -> bool:
                    began = time.monotonic()
                    register(elsewhere)
                    return time.monotonic() - began < TIMEOUT / 2

                wait_until(is_quick_elsewhere)

                def succeeds() -> bool:
                    try:
                        register(here)
                    except StoreError:
                        return False
                    return True

                wait_until(succeeds, 15)  # a replica has taken over
