"""Backup and restore, as docs/operations.md describes them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from simulator import payloads
from tests.support.cli import flask
from tests.support.effort import thorough
from tests.support.polling import wait_until
from tests.support.service import APP, running
from tests.support.stores import socket_url, start_store, store_folder

TRAIT = "[Amplitude] Power users: abc123"


@contextmanager
def store_in(folder: Path, *options: str) -> Iterator[tuple[str, redis.Redis]]:
    """Run a store on the files of a folder. Gives its address, and a client."""
    store = start_store(folder, *options)
    try:
        with redis.Redis.from_url(socket_url(folder)) as client:
            yield socket_url(folder), client
    finally:
        store.terminate()
        store.wait(30)


def back_up(folder: Path, client: redis.Redis) -> None:
    """Take a snapshot as the page says, where there is such a program; else as the store does."""
    program = shutil.which("redis-cli") or shutil.which("valkey-cli")
    if program is None:
        client.save()
        return
    command = [program, "-s", str(folder / "socket"), "--rdb", str(folder / "backup.rdb")]
    subprocess.run(command, check=True, timeout=60, capture_output=True)


@thorough
def test_restore__of_a_snapshot__brings_back_users_cohorts_and_keys() -> None:
    ids = payloads.user_ids(1000)
    with store_folder() as lost, store_folder() as restored:
        with store_in(lost, "--appendonly", "yes", "--dbfilename", "backup.rdb") as (url, client):
            with running({"REDIS_URL": url}) as service:
                assert service.post(payloads.batch(ids, TRAIT, True)).status == 200
            made = flask(url, "keys", "create", "--json", "--app-id", APP)
            key = json.loads(made.stdout)["key"]
            back_up(lost, client)

        shutil.copy(lost / "backup.rdb", restored / "dump.rdb")
        with store_in(restored, "--appendonly", "no") as (url, client):
            client.config_set("appendonly", "yes")
            with running({"REDIS_URL": url, "API_KEYS": ""}) as service:
                headers = {"Authorization": f"Bearer {key}"}
                again = service.post(payloads.batch(ids, TRAIT, True), **headers)
                assert (again.json()["accepted"], again.json()["changed"]) == (1000, 0)
                late = service.post(payloads.batch(["late"], TRAIT, True), **headers)
                assert late.json()["changed"] == 1
                checked = flask(url, "store", "check", "--json")
                assert checked.returncode == 0, checked.stdout
            wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"])

        with store_in(restored, "--appendonly", "yes") as (_, client):  # from then on
            assert client.zcard(f"cohorts:{{{APP}}}:cohort:abc123:members") == 1001
