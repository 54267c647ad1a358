"""What the service does when it is started with settings that it can't work with."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import redis

from tests.support.effort import thorough
from tests.support.load import Load, check_complete
from tests.support.polling import DEADLINE, wait_until
from tests.support.service import ADMIN_KEY, GUNICORN, KEY, ROOT, Service, running

GOOD = {"REDIS_URL": "redis://127.0.0.1:1/0", "API_KEYS": KEY}


def boot(**env: str) -> tuple[int, list[str]]:
    """Start gunicorn as the Procfile does. Returns the exit code and all lines printed."""
    result = subprocess.run(
        GUNICORN,
        cwd=ROOT,
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PORT": "0", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    return result.returncode, result.stdout.splitlines()


@thorough
def test_boot__setting_missing__says_so_in_one_line() -> None:
    code, (line,) = boot(API_KEYS=KEY)
    assert code == 1
    assert line.startswith("cohort-receiver: REDIS_URL: not set. Set it to the address of a Redis")


def test_boot__no_key_anywhere__says_what_to_do_in_one_line(
    store_url: str, redis_client: redis.Redis
) -> None:
    code, lines = boot(REDIS_URL=store_url)
    assert (code, len(lines)) == (1, 1), lines
    assert lines[0] == (
        "cohort-receiver: API_KEYS: no key is set, so nobody could send anything. Set it to "
        "app_id:key, with a long random key; or make a key with `cohort-receiver keys create`."
    )


def test_boot__several_settings_wrong__says_each_in_its_line() -> None:
    code, lines = boot(**GOOD, PORT="-1", STORE_PARTITIONS="0", RATE_LIMIT="fast")
    assert code == 1
    assert [line.split(": ")[1] for line in lines] == ["PORT", "RATE_LIMIT", "STORE_PARTITIONS"]


@thorough
def test_boot__bad_entry_among_keys__is_named_and_not_shown() -> None:
    code, lines = boot(**{**GOOD, "API_KEYS": "shop:a-secret,bad app:another-secret"})
    assert (code, len(lines)) == (1, 1)
    assert "API_KEYS: entry 2" in lines[0]
    assert "secret" not in lines[0]


def test_boot__store_not_there__is_alive_and_not_ready() -> None:
    with running(GOOD) as service:
        assert service.request("GET", "/healthz").status == 200
        reply = service.request("GET", "/readyz")
        assert (reply.status, reply.json()["reason"]) == (503, "store_unreachable")
        assert "Retry-After" in reply.headers


@thorough
def test_boot__environment_of_app_json__starts() -> None:
    manifest = json.loads((ROOT / "app.json").read_text())
    env = {
        # what Heroku makes for `"generator": "secret"`
        name: "5f" * 32 + str(number) if "generator" in declared else declared["value"]
        for number, (name, declared) in enumerate(manifest["env"].items())
    }
    with running({**env, "REDIS_URL": "rediss://:password@127.0.0.1:1"}) as service:
        headers = {"Authorization": f"Bearer {env['API_KEYS']}"}
        body = {"type": "identify", "userId": "ann", "traits": {"Buyers:b1": True}}
        reply = service.post(body, **headers)
        assert (reply.status, reply.json()["reason"]) == (503, "store_unreachable")


@thorough
def test_start__worker_nice__puts_the_workers_behind_the_store(store_url: str) -> None:
    env = {"REDIS_URL": store_url, "WORKER_NICE": "7", "WEB_CONCURRENCY": "2"}
    with running(env) as service:
        arbiter = psutil.Process(service.process.pid)
        nice = min(arbiter.nice() + 7, 19)
        # The last one may be so new that it has not stood back yet.
        wait_until(lambda: [worker.nice() for worker in arbiter.children()] == [nice, nice])


def deploy(folder: Path, version: int) -> None:
    """Deploy a version whose /healthz replies with its worker and the versions of all modules."""
    shutil.copytree(ROOT / "app", folder / "app", dirs_exist_ok=True)
    for name in ("wsgi.py", "gunicorn.conf.py"):
        shutil.copy(ROOT / name, folder)
    for path in (folder / "app").rglob("*.py"):
        path.write_text(path.read_text() + f"\nDEPLOYED = {version}\n")
    health = folder / "app" / "web" / "api" / "health.py"
    health.write_text(
        health.read_text().replace(
            '{"status": "ok"}',
            '{"pid": __import__("os").getpid(), "versions": sorted({m.DEPLOYED for n, m in '
            '__import__("sys").modules.items() if n.partition(".")[0] == "app"})}',
        )
    )


@thorough
def test_hup__deploys_under_load__mix_no_modules_and_lose_no_counts(
    store_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    env = {
        "REDIS_URL": store_url,
        "API_KEYS": f"deployed:{KEY}",
        "ADMIN_API_KEYS": f"deployed:{ADMIN_KEY}",
        "RATE_LIMIT": "off",
        "WEB_CONCURRENCY": "2",
    }
    deploy(tmp_path, 1)
    with running(env, cwd=tmp_path) as service:
        master = psutil.Process(service.process.pid)
        with Load(lambda: service.url, KEY) as load:
            for version in (2, 3):
                # A worker that is still starting would read files that are being written.
                assert versions(service) == {version - 1}
                before = set(master.children())
                deploy(tmp_path, version)
                service.process.send_signal(signal.SIGHUP)
                wait_until(lambda old=before: not old & set(master.children()))
                assert versions(service) == {version}
                answered = len(load.answered) + 400
                wait_until(lambda least=answered: len(load.answered) > least)
        users = len(load.answered)
        wait_until(lambda: counted(service) == users)
        wait_until(lambda: recorded(service) == users)
    check_complete(redis_client, "deployed", load.answered)


def versions(service: Service) -> set[int]:
    """The versions of the modules in all workers, once each has replied."""
    master, found = psutil.Process(service.process.pid), {}

    def all_replied() -> bool:
        reply = service.request("GET", "/healthz", Connection="close")
        assert reply.status == 200, reply.data
        found[reply.json()["pid"]] = reply.json()["versions"]
        return {worker.pid for worker in master.children()} <= found.keys()

    wait_until(all_replied)
    return {version for worker in master.children() for version in found[worker.pid]}


def counted(service: Service) -> float | None:
    """Accepted users, according to the metrics."""
    reply = service.request("GET", "/metrics", api_key=ADMIN_KEY)
    found = re.search(rb'users_accepted_total{source="identify"} (\S+)', reply.data)
    return float(found[1]) if found else None


def recorded(service: Service) -> int:
    """Accepted users, according to the sync history."""
    reply = service.request("GET", "/api/v1/syncs", api_key=ADMIN_KEY)
    return sum(sync["accepted"] for sync in reply.json()["syncs"])


@thorough
def test_start__probable_mistakes__are_a_line_each_and_it_starts(store_url: str) -> None:
    env = {"REDIS_URL": store_url, "REDIS_ULR": "redis://elsewhere", "API_KEYS": "short"}
    with running(env) as service:
        lines = [line for line in service.lines if not line.startswith("{")]
    assert lines == [
        "cohort-receiver: REDIS_ULR: not a setting, so it is ignored. Did you mean REDIS_URL?\n",
        "cohort-receiver: API_KEYS: the key of entry 1 has fewer than 16 characters, so it may be "
        "guessed.\n",
    ]
