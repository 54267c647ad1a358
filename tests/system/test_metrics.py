"""Metrics under several workers: whoever is asked tells for all of them."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.effort import thorough
from tests.support.polling import wait_until
from tests.support.service import APP, KEY, Service, running
from tests.support.stores import socket_url, start_store, store_folder

TOKEN = "TEST_METRICS_TOKEN"
IDENTIFY = "/api/v1/integration/amplitude/cohort"


@pytest.fixture(scope="module")
def metered(store_url: str) -> Iterator[Service]:
    env = {
        "REDIS_URL": store_url,
        "METRICS_TOKEN": TOKEN,
        "READ_API_KEYS": f"{APP}:TEST_READ_KEY",
        "AUTH_FAILURE_RATE_LIMIT": "off",
    }
    with running(env) as service:
        yield service


def scrape(service: Service) -> dict[str, float]:
    """All samples, by name and labels as Prometheus writes them."""
    reply = service.request("GET", "/metrics", Authorization=f"Bearer {TOKEN}")
    assert reply.status == 200, reply.data
    return {
        sample.name + "".join(f" {k}={v}" for k, v in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(reply.data.decode())
        for sample in family.samples
    }


def identify(number: int) -> dict[str, object]:
    return {"type": "identify", "userId": f"user-{number}", "traits": {"Buyers:b1": True}}


def workers(service: Service) -> list[psutil.Process]:
    return psutil.Process(service.process.pid).children()


def send_until_every_worker_has_answered(service: Service, count: int) -> int:
    """Send some identifies on connections of their own. Returns how many it took."""
    folders = list(metrics_folder(service).iterdir())
    sent = 0
    while sent < count or len([f for f in folders if f.name.startswith("histogram_")]) < 3:
        assert service.post(identify(sent), Connection="close").status == 200
        sent += 1
        assert sent < 5000, "some worker never gets a request"
        folders = list(metrics_folder(service).iterdir())
    return sent


def metrics_folder(service: Service) -> Path:
    name = f"cohort-receiver-metrics-{service.process.pid}-*"
    places = (Path("/dev/shm"), Path(tempfile.gettempdir()))
    (folder,) = (found for place in places for found in place.glob(name))
    return folder


@thorough
def test_metrics__of_three_workers__add_up_and_outlive_a_killed_one(store_url: str) -> None:
    env = {"REDIS_URL": store_url, "METRICS_TOKEN": TOKEN, "WEB_CONCURRENCY": "3"}
    with running({**env, "RATE_LIMIT": "off"}) as service:
        sent = send_until_every_worker_has_answered(service, 60)
        accepted = "cohort_receiver_users_accepted_total source=identify"
        post = f"method=POST reason=none route={IDENTIFY} status=200"
        names = (
            accepted,
            "cohort_receiver_users_changed_total source=identify",
            "cohort_receiver_request_seconds_count source=identify",
            "cohort_receiver_store_seconds_count source=identify",
            f"cohort_receiver_requests_total {post}",
        )

        def told() -> list[float | None]:
            return list(map(scrape(service).get, names))

        # A worker tells of one after the other.
        wait_until(lambda: told() == [sent] * len(names))
        for _ in range(12):  # whichever worker answers
            assert told() == [sent] * len(names)

        victim = workers(service)[0]
        victim.send_signal(signal.SIGKILL)
        victim.wait(30)
        wait_until(lambda: len(workers(service)) == 3)
        wait_until(lambda: service.post(identify(0), Connection="close").status == 200)
        wait_until(lambda: (scrape(service).get(accepted) or 0) > sent)
        assert scrape(service)[accepted] == sent + 1


@thorough
def test_metrics__of_workers_that_are_killed_again_and_again__stay_and_their_files_do_not(
    store_url: str,
) -> None:
    env = {"REDIS_URL": store_url, "METRICS_TOKEN": TOKEN, "WEB_CONCURRENCY": "1"}
    accepted = "cohort_receiver_users_accepted_total source=identify"
    count = "cohort_receiver_request_seconds_count source=identify"
    rejected = (
        "cohort_receiver_requests_total method=POST reason=invalid_json "
        f"route={IDENTIFY} status=400"
    )
    with running(env) as service:
        folder = metrics_folder(service)
        for number in range(1, 6):
            assert service.post(identify(number), Connection="close").status == 200
            assert service.post(b"{", Connection="close").status == 400
            wait_until(lambda n=number: scrape(service).get(accepted) == n)
            told = scrape(service)
            assert (told[count], told[rejected]) == (2 * number, number), number
            (victim,) = workers(service)
            victim.send_signal(signal.SIGKILL)
            victim.wait(30)
            wait_until(lambda pid=victim.pid: [w.pid for w in workers(service)] not in ([], [pid]))
            wait_until(lambda: service.request("GET", "/healthz", Connection="close").status == 200)
        assert len(list(folder.glob("*_exited.db"))) == 2
        # Those of the running worker, and of the exited ones.
        wait_until(lambda: len(list(folder.glob("*.db"))) <= 4)


@thorough
def test_metrics__after_a_start_anew__begin_at_zero_and_leave_no_folder(store_url: str) -> None:
    env = {"REDIS_URL": store_url, "METRICS_TOKEN": TOKEN}
    accepted = "cohort_receiver_users_accepted_total source=identify"
    with running(env) as service:
        service.post(identify(1))
        wait_until(lambda: scrape(service).get(accepted) == 1)
        first = metrics_folder(service)
        service.process.send_signal(signal.SIGHUP)  # new workers of the same start
        wait_until(lambda: "Hang up: Master" in service.output())
        wait_until(lambda: service.post(identify(1), Connection="close").status == 200)
        wait_until(lambda: scrape(service).get(accepted) == 2)
        assert metrics_folder(service) == first
    assert not first.exists()
    with running(env) as service:
        assert scrape(service)[accepted] == 0
        assert scrape(service)["cohort_receiver_store_up"] == 1


@thorough
def test_metrics__store_gone__says_so_and_tells_the_rest() -> None:
    with store_folder() as folder:
        store = start_store(folder)
        with running({"REDIS_URL": socket_url(folder), "METRICS_TOKEN": TOKEN}) as service:
            service.post(identify(1))
            wait_until(
                lambda: "cohort_receiver_users_accepted_total source=identify" in scrape(service)
            )
            assert scrape(service)["cohort_receiver_store_memory_bytes"] > 0
            store.terminate()
            store.wait(30)
            wait_until(lambda: scrape(service)["cohort_receiver_store_up"] == 0)
            assert service.post(identify(2)).status == 503
            failed = (
                "cohort_receiver_requests_total method=POST reason=store_unreachable "
                f"route={IDENTIFY} status=503"
            )
            wait_until(lambda: failed in scrape(service))
            told = scrape(service)
            assert told["cohort_receiver_users_accepted_total source=identify"] == 1
            if told["cohort_receiver_store_up"] == 0:
                assert "cohort_receiver_store_memory_bytes" not in told


@pytest.mark.parametrize(
    ("key", "status"),
    [(TOKEN, 200), ("TEST_READ_KEY", 200), (KEY, 403), ("wrong", 401), (None, 401)],
)
def test_metrics__by_key__open_to_those_who_may(
    key: str | None, status: int, metered: Service
) -> None:
    headers = {"Authorization": f"Bearer {key}"} if key else {"Authorization": ""}
    assert metered.request("GET", "/metrics", **headers).status == status


def test_metrics_token__anywhere_else__opens_nothing(metered: Service) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert metered.request("GET", "/api/v1/cohorts", **headers).status == 403
    assert metered.post(identify(1), **headers).status == 403


def test_labels__after_hostile_requests__hold_nothing_that_callers_chose(metered: Service) -> None:
    for path in ("/lists/evil-list/add", "/evil-path", "/api/v1/users/evil-user"):
        metered.post({"userIds": ["evil-user"]}, path)
        metered.request("GET", path)
    metered.request("EVIL", IDENTIFY)
    metered.post({"type": "identify", "userId": "evil-user", "traits": {"Evil:evil-cohort": True}})
    metered.post({"type": "evil", "userId": "evil-user", "traits": {"Evil:evil-cohort": True}})
    for part in ("method=other ", "route=/lists/<path:list_id>/add ", "reason=invalid_payload "):
        wait_until(lambda part=part: any(part in name for name in scrape(metered)))
    text = metered.request("GET", "/metrics", Authorization=f"Bearer {TOKEN}").data.decode()
    assert "evil" not in text.lower()
    assert APP not in text
