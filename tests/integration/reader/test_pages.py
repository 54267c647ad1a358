"""The readers' pages say what is true: their examples run, and print what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import pytest
import redis
from flask import Flask
from openfeature import api

from app.settings import ApiKey
from cohort_reader import CohortReader, Follower, MembershipChange
from cohort_reader.steps import run as run_steps
from simulator import payloads
from tests.integration.conftest import caller
from tests.integration.reader.conftest import Service
from tests.integration.reader.docs_examples import DOCS, Example, examples
from tests.support.effort import PARTITIONS
from tests.support.polling import DEADLINE, wait_until

NODE_MODULES = DOCS.parent / ".cache" / "node" / "node_modules"
TRAIT = payloads.trait_name("Power users", "abc123")


@pytest.fixture
def receive_alice(make_app: Callable[..., Flask]) -> Callable[[int], None]:
    """Let the service receive that alice is in abc123, with a number of partitions."""

    def receive(partitions: int) -> None:
        app = make_app(store_partitions=partitions, api_keys=(ApiKey("default", "key"),))
        Service(caller(app, "key"), partitions).push("alice", trait=TRAIT)

    return receive


def in_python(code: str, folder: Path, env: dict[str, str]) -> list[str]:
    printed: list[str] = []
    names = {"print": lambda *values: printed.append(" ".join(map(str, values)))}
    exec(compile(code, "example", "exec"), names)
    return printed


def in_node(code: str, folder: Path, env: dict[str, str]) -> list[str]:
    if not shutil.which("node"):
        pytest.skip("node is missing")
    if not (NODE_MODULES / "redis").is_dir():
        pytest.skip("npm's package redis is missing: npm install --prefix .cache/node redis")
    (folder / "node_modules").symlink_to(NODE_MODULES)
    return run(["node", "example.mjs"], code, folder, env)


def in_ruby(code: str, folder: Path, env: dict[str, str]) -> list[str]:
    if not succeeds("ruby", "-r", "redis", "-e", ""):
        pytest.skip("ruby with its package redis is missing")
    return run(["ruby", "example.rb"], code, folder, env)


def in_php(code: str, folder: Path, env: dict[str, str]) -> list[str]:
    if not succeeds("php", "-r", "exit((int) !class_exists('Redis'));"):
        pytest.skip("php with its extension redis is missing")
    return run(["php", "example.php"], code, folder, env)


def succeeds(*command: str) -> bool:
    return (
        bool(shutil.which(command[0])) and not subprocess.run(command, timeout=DEADLINE).returncode
    )


def run(command: list[str], code: str, folder: Path, env: dict[str, str]) -> list[str]:
    (folder / command[-1]).write_text(code)
    environ = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **env}
    done = subprocess.run(
        command, cwd=folder, env=environ, timeout=DEADLINE, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


RUNNERS = {"python": in_python, "js": in_node, "ruby": in_ruby, "php": in_php}


@pytest.mark.parametrize("partitions", [1, 3], ids=["single", "partitions"])
@pytest.mark.parametrize("language", RUNNERS)
def test_data_model__examples__print_what_they_say(
    language: str,
    partitions: int,
    receive_alice: Callable[[int], None],
    store_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = examples("data-model.md", language)
    assert [example.mark for example in found] == ["", "partitions"]
    example = found[partitions > 1]
    assert len(example.printed) == 2
    receive_alice(partitions)
    socket = store_url.removeprefix("unix://")
    env = {"REDIS_URL": store_url, "REDIS_HOST": socket, "REDIS_PORT": "0"}
    monkeypatch.setenv("REDIS_URL", store_url)
    assert RUNNERS[language](example.code, tmp_path, env) == example.printed


def test_data_model__every_language__has_both_examples() -> None:
    for language in ("python", "js", "ruby", "go", "java", "php"):
        marks = [example.mark for example in examples("data-model.md", language)]
        assert marks == ["", "partitions"], language


def test_data_model__checksums__are_right() -> None:
    page = (DOCS / "data-model.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| (\d+) \| (\d) \|$", page, re.MULTILINE)
    assert len(rows) >= 4
    for user_id, checksum, partition in rows:
        assert (crc32(user_id.encode()), crc32(user_id.encode()) % 3) == (
            int(checksum),
            int(partition),
        )


def first_line(example: Example) -> str:
    """What an example does, told by its first line that is no import."""
    return next(line for line in example.code.splitlines() if line and "import" not in line)


@pytest.mark.parametrize(
    "example", [e for e in examples("python-reader.md", "python") if not e.mark], ids=first_line
)
def test_python_reader__examples__print_what_they_say(
    example: Example,
    receive_alice: Callable[[int], None],
    store_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receive_alice(1)
    client = redis.Redis.from_url(store_url)
    assert Follower(client, "mail", start="all").create_group()
    monkeypatch.setenv("REDIS_URL", store_url)
    assert in_python(example.code, tmp_path, {}) == example.printed
    api.clear_providers()


def test_python_reader__example_of_a_follower__prints_what_it_says(
    receive_alice: Callable[[int], None], store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = [e for e in examples("python-reader.md", "python") if e.mark == "follow"]
    receive_alice(1)
    monkeypatch.setenv("REDIS_URL", store_url)
    printed: list[str] = []
    names = {
        "print": lambda *values: printed.append(" ".join(map(str, values))),
        "__name__": "example",
    }
    thread = threading.Thread(target=exec, args=(compile(example.code, "x", "exec"), names))
    thread.start()
    try:
        wait_until(lambda: printed)
    finally:
        wait_until(lambda: "follower" in names)
        names["follower"].stop()
        thread.join(DEADLINE)
    assert not thread.is_alive()
    assert printed == example.printed


@pytest.mark.parametrize("partitions", PARTITIONS)
def test_reading__rights__are_enough_and_not_more(
    partitions: int,
    make_app: Callable[..., Flask],
    store_url: str,
    redis_client: redis.Redis,
) -> None:
    service = Service(caller(make_app(store_partitions=partitions)), partitions)
    service.push(["a", "bad"], trait=TRAIT)
    lines = "".join(example.code for example in examples("reading.md", "acl")).splitlines()
    assert len(lines) == 2
    if partitions > 1:
        lines = [line.replace("cohorts:{shop}:", "cohorts:{shop:*}:") for line in lines]
    for line in lines:
        redis_client.execute_command(*line.replace("PASSWORD", "secret").split())

    def client(name: str) -> redis.Redis:
        return redis.Redis.from_url(store_url, username=name, password="secret")

    def fail(change: MembershipChange) -> None:
        raise ValueError

    try:
        for name in ("shop-reader", "shop-follower"):
            reader = CohortReader(client(name), app="shop")
            assert reader.is_member("a", "abc123")
            assert reader.traits("a") == {TRAIT: True}
            assert reader.member_count("abc123") == 2
            assert reader.freshness("abc123").state == "fresh"
            assert reader.cohort_ids() == ["abc123"]
            assert set(reader.members("abc123")) == {"a", "bad"}
            key = next(redis_client.scan_iter(match="*:user:a"))
            for write in (client(name).delete, client(name).persist):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    write(key)
        with pytest.raises(redis.exceptions.NoPermissionError):
            CohortReader(client("shop-reader"), app="other").is_member("a", "abc123")
        with pytest.raises(redis.exceptions.NoPermissionError):
            Follower(client("shop-reader"), "mail", app="shop").poll(fail)

        follower = Follower(
            client("shop-follower"),
            "mail",
            app="shop",
            start="all",
            max_deliveries=2,
            retry_seconds=0,
        )

        def all_failed() -> bool:
            follower.poll(fail)
            run_steps(follower._wait())
            users = [u for failed in follower.failed_changes() for u in failed.change.user_ids]
            return sorted(users) == ["a", "bad"]

        wait_until(all_failed)
        for failed in follower.failed_changes():
            follower.remove_failed(failed)
        assert {(lag.undelivered, lag.pending) for lag in follower.lag()} == {(0, 0)}

        for member in (False, True):
            service.push("a", member, trait=TRAIT)
        for key in redis_client.scan_iter(match="*:changes"):
            redis_client.xtrim(key, maxlen=1, approximate=False)
        follower.poll(fail)
        assert any(lag.lost for lag in follower.lag())
        follower.acknowledge_loss()
        assert not any(lag.lost for lag in follower.lag())
    finally:
        redis_client.acl_deluser("shop-reader", "shop-follower")
