"""One run with losses: the store loses data during syncs, and every cohort is made whole again.

What a loss leaves behind is unknown to the sender, so nothing is compared until the repair. Then
each cohort must have exactly the members that Amplitude has, and be verified.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import quote

import redis
import urllib3

from simulator import payloads
from simulator.cohort import Cohort
from simulator.cohort_sync import CohortSync, Mode
from simulator.connection import Target
from simulator.reader import RedisReader
from simulator.upstream import ServedCohort, Upstream
from tests.chaos.faults import Faults
from tests.chaos.processes import ServiceProcess, StoreProcess
from tests.chaos.run import (
    APP,
    KEY,
    MISBEHAVIOUR,
    STORE_TIMEOUT,
    Outcome,
    check_store,
    stage,
    store_command,
)
from tests.support.polling import wait_until
from tests.support.proxy import Proxy

ADMIN_KEY = "the-admin-key-of-the-chaos-run"
COHORTS: tuple[tuple[str, Mode, int], ...] = (
    ("property", "property", 5000),
    ("list", "list", 5000),
    ("webhook", "webhook", 5000),
)
# While the cohorts are repaired.
FAULTS = (
    "worker killed (-9)",
    "store killed (-9) and restarted",
    "connections to the store broken",
    "service restarted as in a deployment",
)


def run(seconds: float, seed: int, *, partitions: int = 1, share: float = 1.0) -> Outcome:
    """Lose data and repair it for about `seconds`, each kind of both at least once."""
    outcome = Outcome(partitions=partitions, title="losses")
    started = time.monotonic()
    with ExitStack() as stack:
        upstream = stack.enter_context(
            Upstream(job_seconds=0.1, max_requests=10**6, max_exports=10**6)
        )
        service, store, proxy, _ = stack.enter_context(
            stage(
                partitions,
                ADMIN_API_KEYS=f"{APP}:{ADMIN_KEY}",
                AMPLITUDE_KEYS=f"{APP}:{upstream.api_key}:{upstream.secret_key}",
                AMPLITUDE_URL=upstream.url,
                AMPLITUDE_EXPORTS_PER_MONTH="500",
            )
        )
        round_ = _Round(service, store, proxy, upstream, random.Random(seed), outcome, share)
        stack.callback(round_.close)
        number = 0
        while number < len(COHORTS) or time.monotonic() - started < seconds:
            round_.lose_and_repair(number)
            number += 1
        check_store(store.url, outcome)
    outcome.seconds = time.monotonic() - started
    return outcome


_AFTER_A_LOSS = ("incomplete", "unknown")


class _Round:
    """Syncs, a loss in their midst, the repair, and the comparison."""

    def __init__(
        self,
        service: ServiceProcess,
        store: StoreProcess,
        proxy: Proxy,
        upstream: Upstream,
        drawn: random.Random,
        outcome: Outcome,
        share: float,
    ) -> None:
        self._service, self._store, self._upstream = service, store, upstream
        self._drawn, self._outcome = drawn, outcome
        self._faults = Faults(service, store, proxy, drawn.randrange(10**6), FAULTS)
        self._http = urllib3.PoolManager(retries=False, timeout=20)
        self._cohorts = [
            Cohort.synthetic(name, f"c{n}", int(users * share), churn=0.2, seed=n)
            for n, (name, _, users) in enumerate(COHORTS)
        ]
        self._losses: list[tuple[str, Callable[[], None]]] = [
            ("store emptied", self._empty),
            ("store set back to an earlier state", self._set_back),
        ]

    def close(self) -> None:
        self._http.clear()

    def lose_and_repair(self, number: int) -> None:
        over = threading.Event()
        name, lose = self._losses[number % len(self._losses)]
        with ThreadPoolExecutor(len(COHORTS)) as pool:
            self._keep_a_copy()
            syncing = [pool.submit(self._sync, n, over) for n in range(len(COHORTS))]
            try:
                threading.Event().wait(self._drawn.uniform(1.5, 3))
                lose()
                self._outcome.faults[name] += 1
                threading.Event().wait(self._drawn.uniform(0.5, 1.5))
            finally:
                over.set()
            for one in syncing:
                one.result()
            wait_until(lambda: self._get("/readyz").get("warnings"))
            for cohort in self._cohorts:
                # They are marked once the loss has been found.
                with suppress(AssertionError):
                    wait_until(lambda cohort=cohort: self._state(cohort) in _AFTER_A_LOSS, 10)
                if (state := self._state(cohort)) not in _AFTER_A_LOSS:
                    self._wrong(cohort, f"is {state} after a loss")
            calm = pool.submit(self._faults.run, 0.0)
            repairs = (self._reconcile, self._import, self._resync)
            for n, cohort in enumerate(self._cohorts):
                repair = repairs[(n + number) % len(repairs)]
                repair(cohort)
                self._outcome.faults[f"repaired by {repair.__name__.strip('_')}"] += 1
            calm.result()
        self._outcome.faults.update(self._faults.done)
        self._faults.done.clear()
        self._acknowledge()
        for cohort in self._cohorts:
            self._compare(cohort)

    # Syncing

    def _sync(self, number: int, over: threading.Event) -> None:
        cohort, (_, mode, _) = self._cohorts[number], COHORTS[number]
        with CohortSync(
            Target(self._service.url, KEY, timeout=10.0),
            cohort,
            mode=mode,
            batch_size=200,
            time_scale=0.02,
            seed=self._drawn.randrange(10**6),
            faults=MISBEHAVIOUR,
            settle=STORE_TIMEOUT + 1,
        ) as sync:
            while not over.is_set():
                self._outcome.syncs += sync.sync().succeeded
            sync.drain()
            self._outcome.requests += sync.stats.requests
            self._outcome.retries += sync.stats.retries
            self._outcome.misbehaviour.update(sync.stats.faults)

    # Losses

    def _keep_a_copy(self) -> None:
        """Copy the store's files. Their end may be cut off, as in a backup of a running store."""
        shutil.rmtree(self._store.folder / "copy", ignore_errors=True)
        shutil.copytree(self._store.folder / "appendonlydir", self._store.folder / "copy")

    def _set_back(self) -> None:
        self._store.kill()
        shutil.rmtree(self._store.folder / "appendonlydir")
        (self._store.folder / "copy").rename(self._store.folder / "appendonlydir")
        self._store.start()

    def _empty(self) -> None:
        with redis.Redis.from_url(self._store.url) as client:
            client.flushall()

    # Repairs, each repeated until a fault no longer prevents it

    def _reconcile(self, cohort: Cohort) -> None:
        members = [cohort.ids[user] for user in cohort.members]
        self._upstream.cohorts[cohort.cohort_id] = ServedCohort(
            cohort.cohort_id, cohort.name, members, anonymous=7
        )
        path = self._path(cohort, "/reconcile")

        def repaired() -> bool:
            self._call("POST", path, {"apply": True, "force": True})
            found: dict[str, Any] = {}

            def has_ended() -> bool:
                found.update(self._get(path))
                return found.get("state") not in (None, "running")

            wait_until(has_ended)
            return found["state"] == "done" and self._state(cohort) == "verified"

        wait_until(repaired)

    def _import(self, cohort: Cohort) -> None:
        rows = "".join(f"{cohort.ids[user]}\n" for user in cohort.members)
        path = self._path(cohort, f"/members?force=true&name={quote(cohort.name)}")

        def repaired() -> bool:
            status, _ = self._call("PUT", path, ("user_id\n" + rows).encode(), "text/csv")
            return status == 200 and self._state(cohort) == "verified"

        wait_until(repaired)

    def _resync(self, cohort: Cohort) -> None:
        members = [cohort.ids[user] for user in cohort.members]
        path = self._path(cohort, "/resync")

        def repaired() -> bool:
            self._send(cohort, members[:1])  # a lost cohort is unknown
            self._call("DELETE", path)
            if self._call("POST", path)[0] != 202:
                return False
            self._send(cohort, members)
            wait_until(lambda: self._finish(path))
            return self._state(cohort) == "verified"

        wait_until(repaired)

    def _finish(self, path: str) -> bool:
        status, reply = self._call("POST", f"{path}/finish", {"force": True})
        return status in (404, 409) or reply.get("state") == "finished"

    def _send(self, cohort: Cohort, user_ids: list[str]) -> None:
        for start in range(0, len(user_ids), 500):
            body = payloads.batch(user_ids[start : start + 500], cohort.trait, True)
            wait_until(
                lambda body=body: self._call("POST", payloads.COHORT_PATH, body)[0] == 200  # type: ignore[misc]
            )

    def _acknowledge(self) -> None:
        done = store_command(self._store.url, self._outcome.partitions, "acknowledge-loss")
        if done.returncode:
            self._outcome.wrong.append(f"acknowledge-loss failed: {done.stdout}{done.stderr}")

    # Comparing

    def _compare(self, cohort: Cohort) -> None:
        if (state := self._state(cohort)) != "verified":
            found = self._get(self._path(cohort)).get("completeness")
            self._wrong(cohort, f"is {state} after its repair: {found}")
        reader = RedisReader(self._store.url, app=APP, partitions=self._outcome.partitions)
        try:
            stored = {
                user for user, traits in self._traits(reader, cohort) if traits.get(cohort.trait)
            }
        finally:
            reader.close()
        members = {cohort.ids[user] for user in cohort.members}
        self._outcome.users_checked += len(cohort.ids)
        if wrong := len(stored ^ members):
            self._outcome.users_wrong += wrong
            self._wrong(cohort, f"has {wrong} wrong users after its repair")
        if (count := self._get(self._path(cohort)).get("members")) != len(members):
            self._wrong(cohort, f"has {count} members instead of {len(members)}")

    def _traits(self, reader: RedisReader, cohort: Cohort) -> Iterator[tuple[str, dict[str, Any]]]:
        for start in range(0, len(cohort.ids), 1000):
            some = cohort.ids[start : start + 1000]
            yield from zip(some, map(dict, reader.traits(some)), strict=True)

    def _state(self, cohort: Cohort) -> str:
        status, found = self._call("GET", self._path(cohort))
        if status == 404:
            return "unknown"
        return str(found.get("completeness", {}).get("state"))

    def _wrong(self, cohort: Cohort, what: str) -> None:
        self._outcome.wrong.append(f"{cohort.name} {what}")

    def _path(self, cohort: Cohort, rest: str = "") -> str:
        return f"/api/v1/cohorts/{cohort.cohort_id}{rest}"

    def _get(self, path: str) -> dict[str, Any]:
        return self._call("GET", path)[1]

    def _call(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> tuple[int, dict[str, Any]]:
        """Status and document of the reply; (0, {}) if there is none, or an error of a fault."""
        try:
            sent = {"body": body} if isinstance(body, bytes) else {"json": body or {}}
            reply = self._http.request(
                method,
                self._service.url + path,
                headers={"api_key": ADMIN_KEY, "Content-Type": content_type},
                **({} if method == "GET" else sent),
            )
        except urllib3.exceptions.HTTPError:
            return 0, {}
        self._outcome.statuses[reply.status] += 1
        document = reply.json() if reply.data else {}
        return reply.status, document if isinstance(document, dict) else {}
