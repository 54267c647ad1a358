"""Background work in the web workers of a real service."""

from __future__ import annotations

import psutil
import pytest
import redis

from simulator import payloads
from tests.support.effort import thorough
from tests.support.polling import DEADLINE, wait_until
from tests.support.service import APP, Service, running
from tests.support.stores import running_store

OLD, NEW = "[Amplitude] Old name: c1", "[Amplitude] New name: c1"


@pytest.fixture(autouse=True)
def app_known(redis_client: redis.Redis) -> None:
    """Let background work know the app, although the store has just been emptied.

    The service makes sure of that once a second only: a test that is quicker would wait for ever.
    """
    redis_client.sadd("cohorts:apps", APP)


def send(service: Service, users: list[str], trait: str, member: bool = True) -> None:
    for start in range(0, len(users), 5000):
        part = users[start : start + 5000]
        assert service.post(payloads.batch(part, trait, member)).status == 200


def fields(client: redis.Redis, users: list[str]) -> set[str]:
    """The trait names of all these users."""
    pipeline = client.pipeline(transaction=False)
    for user in users:
        pipeline.hkeys(f"cohorts:{{{APP}}}:user:{user}")
    return {name for names in pipeline.execute() for name in names}


@thorough
def test_rename__of_many_members__ends_without_a_process_of_its_own(
    service: Service, redis_client: redis.Redis
) -> None:
    users = payloads.user_ids(3000)
    send(service, users, OLD)
    send(service, users[:10], OLD, member=False)
    send(service, users[-1:], NEW)
    wait_until(lambda: fields(redis_client, users) == {NEW}, 90)


@thorough
def test_rename__worker_killed_in_the_middle__is_completed_by_another() -> None:
    users = payloads.user_ids(20_000)
    jobs = f"cohorts:{{{APP}}}:jobs"
    with (
        running_store() as store_url,  # where no other service does the work
        redis.Redis.from_url(store_url, decode_responses=True) as client,
        running({"REDIS_URL": store_url, "WEB_CONCURRENCY": "1"}) as service,
    ):
        send(service, users, OLD)
        for number in range(5):
            name = f"{number} {NEW}"
            send(service, users[:1], name)
            # Only some are looked at: on a busy machine all would be renamed before all are read.
            wait_until(lambda name=name: name in fields(client, users[1::100]), 90)
            workers = psutil.Process(service.process.pid).children()
            for worker in workers:
                worker.kill()
            if client.scard(jobs):
                break
            psutil.wait_procs(workers, DEADLINE)  # it was done, so that another one must begin
        else:
            pytest.fail("it was never killed in the middle")
        wait_until(lambda: client.scard(jobs) == 0, 90)
        assert fields(client, users) == {name}
