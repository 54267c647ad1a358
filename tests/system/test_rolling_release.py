"""A release that replaces one machine after another, and is rolled back, while syncs arrive."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from io import BytesIO
from itertools import count
from pathlib import Path

import redis

from tests.support.effort import thorough
from tests.support.load import Load, check_complete
from tests.support.polling import wait_until
from tests.support.service import APP, KEY, ROOT, Service, running
from tests.support.stores import socket_url, start_store, store_folder

MACHINES = 2
FILES = ("app", "wsgi.py", "gunicorn.conf.py")
# What a sender may be told while the store is away, and nothing else.
AWAY = {"503 store_unreachable", "503 store_timeout", "503 store_loading"}


def git(*words: str) -> bytes:
    command = ["git", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60).stdout


def unpack(folder: Path, version: str) -> Path:
    """A copy of the service as it is, which gives ``version`` as its own."""
    folder.mkdir()
    for name in FILES:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    return _named(folder, version)


def unpack_release(folder: Path, version: str) -> Path:
    """A copy of the newest release, or of the service as it is before there is one."""
    tags = git("tag", "--list", "v*", "--sort=-version:refname").decode().split()
    if not tags:
        return unpack(folder, version)
    with tarfile.open(fileobj=BytesIO(git("archive", tags[0], *FILES))) as archive:
        archive.extractall(folder, filter="data")
    return _named(folder, version)


def _named(folder: Path, version: str) -> Path:
    package = folder / "app" / "__init__.py"
    text = package.read_text()
    start = text.index("__version__ = ")
    end = text.index("\n", start)
    package.write_text(f'{text[:start]}__version__ = "{version}"{text[end:]}')
    return folder


class Router:
    """Sends each request to the next machine, and takes machines out of service gracefully."""

    def __init__(self) -> None:
        self._machines: list[tuple[Service, AbstractContextManager[Service]]] = []
        self._turns = count()
        self._chosen: dict[int, str] = {}  # by thread: where its last request went

    def url(self) -> str:
        machines = self._machines
        url = machines[next(self._turns) % len(machines)][0].url
        self._chosen[threading.get_ident()] = url
        return url

    def add(self, env: dict[str, str], folder: Path) -> None:
        context = running(env, cwd=folder)
        self._machines = [*self._machines, (context.__enter__(), context)]

    def replace_oldest(self, env: dict[str, str], folder: Path) -> None:
        """Start a machine; stop the oldest once no sender's last request went to it."""
        self.add(env, folder)
        (old, context), *self._machines = self._machines
        wait_until(lambda: old.url not in self._chosen.values())
        context.__exit__(None, None, None)
        assert old.process.returncode == 0, old.output()

    def versions(self) -> list[str]:
        return [one.request("GET", "/version").json()["version"] for one, _ in self._machines]

    def close(self) -> None:
        for _, context in self._machines:
            context.__exit__(None, None, None)


@thorough
def test_release_and_rollback__under_load_and_with_the_store_away__lose_nothing(
    tmp_path: Path,
) -> None:
    old = unpack_release(tmp_path / "old", "0.0.1")
    new = unpack(tmp_path / "new", "9.9.9")
    with store_folder() as folder:
        keeps = ("--appendonly", "yes", "--appendfsync", "always")
        store = start_store(folder, *keeps)
        env = {"REDIS_URL": socket_url(folder), "RATE_LIMIT": "off", "STORE_TIMEOUT_SECONDS": "2"}
        router = Router()
        try:
            for _ in range(MACHINES):
                router.add(env, old)
            with Load(router.url, KEY) as load:

                def more() -> None:
                    least = len(load.answered) + 400
                    wait_until(lambda: len(load.answered) > least)

                more()
                router.replace_oldest(env, new)
                assert sorted(router.versions()) == ["0.0.1", "9.9.9"]
                more()
                assert not load.refused, load.refused

                store.kill()
                store.wait(30)
                wait_until(lambda: load.refused)
                store = start_store(folder, *keeps)
                more()
                assert set(load.refused) <= AWAY, load.refused

                # Each worker has noticed that the store is back.
                wait_until(lambda: _nothing_refused(load, more))
                before = load.refused.copy()
                router.replace_oldest(env, new)
                assert router.versions() == ["9.9.9"] * MACHINES
                more()
                for _ in range(MACHINES):
                    router.replace_oldest(env, old)
                    more()
                assert router.versions() == ["0.0.1"] * MACHINES
                assert load.refused == before
            with redis.Redis.from_url(socket_url(folder), decode_responses=True) as client:
                check_complete(client, APP, load.answered)
        finally:
            router.close()
            store.terminate()
            store.wait(30)


def _nothing_refused(load: Load, more: Callable[[], None]) -> bool:
    before = load.refused.copy()
    more()
    return load.refused == before
