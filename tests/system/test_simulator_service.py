"""The simulator against the running service: whole syncs, certification, reading the store."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib

import pytest
import redis

from simulator import payloads
from simulator.certify import Options, report, run_checks
from simulator.certify.checks import CHECKS
from simulator.cohort import Cohort
from simulator.cohort_sync import CohortSync, Mode
from simulator.connection import Target
from simulator.expected_state import compare
from simulator.faults import parse_faults
from simulator.reader import HttpReader, ReaderError, RedisReader
from tests.support.service import ADMIN_KEY, APP, KEY, ROOT, Service

WAYS: tuple[Mode, ...] = ("property", "single", "list", "webhook")


@pytest.mark.parametrize("mode", WAYS)
def test_sync__with_every_misbehaviour__leaves_the_truth_in_the_store(
    mode: Mode, service: Service, store_url: str
) -> None:
    size = 50 if mode == "single" else 1000
    with CohortSync(
        Target(service.url, KEY),
        Cohort.synthetic("Power: users", f"truth-{mode}", size, churn=0.3),
        mode=mode,
        batch_size=50,
        time_scale=0.01,
        faults=parse_faults("all=0.1,slow-seconds=0.2"),
        seed=11,
    ) as sync:
        results = sync.run(4)
        assert [result.problems for result in results] == [[]] * len(results)
        assert sync.stats.faults
        for reader in (RedisReader(store_url, app=APP), HttpReader(service.url, ADMIN_KEY)):
            found = compare(sync.expected, reader)
            assert found.ok, found.examples
            assert found.checked > size
            assert found.uncertain == 0


def test_http_reader__of_a_key_that_may_not_read__says_so(service: Service) -> None:
    with pytest.raises(ReaderError, match=r"403\. It needs a key with the scope read"):
        HttpReader(service.url, KEY).traits(["u"])


def test_certify__this_service__is_certified(service: Service, store_url: str) -> None:
    options = Options(
        Target(service.url, KEY, APP),
        modes=["property", "list", "webhook"],
        skip=["*within*", "network.slow-body"],  # by the clock, on a machine with other work
    )
    found = run_checks(options, CHECKS, RedisReader(store_url, app=APP))
    assert [report.line(o) for o in found.outcomes if o.verdict == "failed"] == []
    assert found.certified


def test_sync_command__with_a_reader__reads_every_user_back(
    service: Service, store_url: str
) -> None:
    command = [
        *(sys.executable, "-m", "simulator", "sync", service.url, "--key", KEY),
        *("--users", "2000", "--syncs", "2", "--reader", store_url, "--app", APP, "--json"),
    ]
    # Twice the same: the second begins with what the first has left.
    for _ in range(2):
        run = subprocess.run(
            [*command, "--seed", "4"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        found = json.loads(run.stdout)
        assert found["outcome"] == "ok"
        assert found["read_back"]["users_compared"] == 2200
        assert found["read_back"]["users_wrong"] == 0


def test_sync_command__state_changed_behind_its_back__exits_5(
    service: Service, store_url: str, redis_client: redis.Redis
) -> None:
    ids = payloads.user_ids(3, seed=9)
    command = [
        *(sys.executable, "-m", "simulator", "sync", service.url, "--key", KEY),
        *("--users", "3", "--cohort", "n:changed", "--seed", "9", "--app", "somebody-else"),
    ]
    run = subprocess.run(
        [*command, "--reader", store_url], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 5
    assert "3 WRONG" in run.stdout
    assert redis_client.hget(f"cohorts:{{{APP}}}:user:{ids[0]}", "[Amplitude] n: changed") == "true"


@pytest.mark.parametrize("partitions", [1, 4])
def test_traits__hashes_as_laid_out__are_read_in_order(
    partitions: int, store_url: str, redis_client: redis.Redis
) -> None:
    users = [*payloads.user_ids(1200), "ünï:{x}"]
    for user in users[::2]:
        tag = f"a:{zlib.crc32(user.encode()) % partitions}" if partitions > 1 else "a"
        redis_client.hset(
            f"p:{{{tag}}}:user:{user}", mapping={user: "true", "b": "false", "c": "x"}
        )
    reader = RedisReader(store_url, prefix="p", app="a", partitions=partitions)
    found = reader.traits(users)
    reader.close()
    assert found[::2] == [{user: True, "b": False, "c": "x"} for user in users[::2]]
    assert found[1::2] == [{}] * 600


def test_traits__store_refuses__says_so_without_the_password(
    store_url: str, redis_client: redis.Redis
) -> None:
    redis_client.set("cohorts:{default}:user:a", "no hash")
    with pytest.raises(ReaderError, match="WRONGTYPE"):
        RedisReader(store_url).traits(["a"])
    with pytest.raises(ReaderError) as caught:
        RedisReader("redis://user:secret@127.0.0.1:1").traits(["a"])
    assert "secret" not in str(caught.value)
