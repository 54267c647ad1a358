"""The service as production runs it, on a cluster that loses a master under load."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import redis
import trustme

from tests.support.cli import flask
from tests.support.clusters import NODE_TIMEOUT_MS, Tls, running_cluster
from tests.support.effort import thorough
from tests.support.load import COHORT_ID, TRAIT, Load
from tests.support.polling import wait_until
from tests.support.service import APP, KEY, running

PARTITIONS = 6
ROUND = 1500  # users that are written between two faults


def more(load: Load) -> None:
    """Wait until the load has got a good deal further."""
    goal = len(load.answered) + ROUND
    wait_until(lambda: len(load.answered) >= goal)


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tls:
    """Certificates, and a server that knows TLS."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is missing; Debian has it in the package redis-server")
    monkeypatch.setenv("TEST_STORE_SERVER", program)
    found = Tls(*(tmp_path / name for name in ("certificate.pem", "key.pem", "authority.pem")))
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(found.certificate))
    issued.private_key_pem.write_to_path(str(found.key))
    authority.cert_pem.write_to_path(str(found.authority))
    return found


@thorough
@pytest.mark.parametrize(
    "over_tls", [pytest.param(False, id="plain"), pytest.param(True, id="over TLS", marks=thorough)]
)
def test_master__killed_under_load__is_503_until_the_failover_and_nothing_is_lost(
    over_tls: bool, request: pytest.FixtureRequest
) -> None:
    tls: Tls | None = request.getfixturevalue("tls") if over_tls else None
    trust = {"SSL_CERT_FILE": str(tls.authority)} if tls else {}
    with running_cluster(tls=tls) as cluster:
        env = {
            **trust,
            "REDIS_URL": cluster.url,
            "STORE_CLUSTER": "true",
            "STORE_PARTITIONS": str(PARTITIONS),
            # Without it, what a master answered and had not copied yet goes with it.
            "STORE_WAIT_REPLICAS": "1",
            "RATE_LIMIT": "off",
            "WEB_CONCURRENCY": "2",
        }
        with running(env) as service, Load(lambda: service.url, KEY) as load:
            more(load)
            master = cluster.master_of(f"cohorts:{{{APP}:0}}:changes")
            master.kill()
            wait_until(lambda: load.refused.total() > 0)
            wait_until(lambda: cluster.master_of(f"cohorts:{{{APP}:0}}:changes") is not master)
            # Until the old master is back, the new one has no replica that could acknowledge.
            master.start()
            more(load)
            load.finish()
            assert service.request("GET", "/readyz").status == 200
            service.hang_up()

        assert load.refused, f"no request met the {NODE_TIMEOUT_MS} ms without a master"
        assert {reason.split()[0] for reason in load.refused} == {"503"}, load.refused
        cluster.wait_until_healthy()
        with cluster.client() as client:
            check_complete(client, load.answered)
        checked = flask(cluster.url, "store", "check", "--json", **trust, **settings(env))
        assert (checked.returncode, checked.stderr) == (0, "")
        assert json.loads(checked.stdout)["memberships"] == len(load.answered)


def settings(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith("STORE_")}


def check_complete(client: redis.RedisCluster, users: list[str]) -> None:
    """Fail unless every answered user has the trait, is a member, and entered exactly once."""
    members: set[str] = set()
    entered: Counter[str] = Counter()
    for partition in range(PARTITIONS):
        base = f"cohorts:{{{APP}:{partition}}}:"
        members.update(client.zrange(f"{base}cohort:{COHORT_ID}:members", 0, -1))
        for _, entry in client.xrange(f"{base}changes"):
            assert entry["change"] == "entered"
            entered.update(json.loads(entry["users"]))
    assert members == set(users)
    assert entered == Counter(users)
    with client.pipeline() as pipeline:
        for key in client.scan_iter(match="*:user:*"):
            pipeline.hget(key, TRAIT)
        assert Counter(pipeline.execute()) == {"true": len(users)}
