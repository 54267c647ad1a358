"""A store is copied to a cluster while the service works on it; the copy is killed, and goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import threading

import pytest
import redis

from simulator import payloads
from tests.cluster import running_cluster
from tests.conftest import running_store
from tests.system.command import FLASK, environment, flask
from tests.system.load import COHORT_ID, TRAIT
from tests.system.service import APP, ROOT, Service, running, wait_until

PARTITIONS = 12
USERS_PER_BATCH = 40
MOST_BATCHES = 3000


class Trickle:
    """Sends some batches a second while the ``with`` block runs: the copy must keep up."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self.answered: list[str] = []

    def __enter__(self) -> Trickle:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _send(self) -> None:
        for number in range(MOST_BATCHES):
            users = [f"user-{number}-{n}" for n in range(USERS_PER_BATCH)]
            assert self._service.post(payloads.batch(users, TRAIT, True)).status == 200
            self.answered += users
            if self._stop.wait(0.03):
                return


def test_copy__to_a_cluster_under_load__killed_and_resumed__loses_nothing() -> None:
    with running_store() as url, running_cluster(3, 0) as cluster:
        words = ("store", "copy", "--to", cluster.url, "--partitions", str(PARTITIONS), "--cluster")
        env = {"REDIS_URL": url, "RATE_LIMIT": "off"}
        with running(env) as service:
            users = payloads.user_ids(4000)
            assert service.post(payloads.batch(users, TRAIT, True)).status == 200
            with Trickle(service) as load:
                with cluster.client() as client:
                    for _ in range(5):
                        first = subprocess.Popen([*FLASK, *words], cwd=ROOT, env=environment(url))
                        # in the middle of the walk
                        wait_until(lambda: client.hlen("cohorts:copy") > 3)
                        first.send_signal(signal.SIGKILL)
                        first.wait()
                        if not client.hexists("cohorts:copy", "walked"):
                            break
                        client.flushall()
                    else:
                        pytest.fail("it was never killed in the middle")
                second = subprocess.Popen(
                    # Longer than the load may pause on a busy machine.
                    [*FLASK, *words, "--follow", "5", "--json"],
                    cwd=ROOT,
                    env=environment(url),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                assert second.stderr is not None
                for line in second.stderr:
                    if line.startswith("Comparing"):
                        break
                goal = len(load.answered) + 500
                wait_until(lambda: len(load.answered) >= goal)
        # The cut-over: the old service stops, the copy finds that nothing comes any more.
        printed, _ = second.communicate(timeout=60)
        report = json.loads(printed)
        assert (second.returncode, report["ok"]) == (0, True), report
        assert report["again"] > 0

        env = {
            "REDIS_URL": cluster.url,
            "STORE_CLUSTER": "true",
            "STORE_PARTITIONS": str(PARTITIONS),
            "RATE_LIMIT": "off",
        }
        with cluster.client() as client:
            assert members(client) == {*users, *load.answered}
        with running(env) as service:
            assert service.post(payloads.batch(users, TRAIT, False)).json()["changed"] == 4000
        checked = flask(
            cluster.url,
            *("store", "check", "--json"),
            STORE_CLUSTER="true",
            STORE_PARTITIONS=str(PARTITIONS),
        )
        assert json.loads(checked.stdout)["ok"], checked.stdout


def members(client: redis.RedisCluster) -> set[str]:
    found: set[str] = set()
    for partition in range(PARTITIONS):
        key = f"cohorts:{{{APP}:{partition}}}:cohort:{COHORT_ID}:members"
        found.update(client.zrange(key, 0, -1))
    return found
