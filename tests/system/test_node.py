"""docs/node.md says what is true: its examples run as printed, also while things fail."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from simulator import payloads
from tests.integration.reader.docs_examples import examples
from tests.support.effort import thorough
from tests.support.node import Program, node_folder, run_node
from tests.support.polling import wait_until
from tests.support.proxy import Proxy
from tests.support.service import Service, running
from tests.support.stores import (
    client_of_empty_store,
    reserved_ports,
    running_store,
    socket_url,
    start_store,
    store_folder,
)

READ_KEY = "TEST_READ_KEY"
TRAIT = "[Amplitude] Power users: abc123"
STREAM = "cohorts:{default}:changes"
EXAMPLES = {example.mark.replace(" ", "-"): example for example in examples("node.md", "js")}


@contextmanager
def serving(store_url: str) -> Iterator[Service]:
    env = {"REDIS_URL": store_url, "RATE_LIMIT": "off", "READ_API_KEYS": f"default:{READ_KEY}"}
    with running(env | {"API_KEYS": "default:TEST_API_KEY"}) as service:
        yield service


@pytest.fixture(scope="module")
def store_url() -> Iterator[str]:
    """A store that tests may empty: no other test's service takes that for a loss."""
    with running_store() as url:
        yield url


@pytest.fixture
def redis_client(store_url: str) -> Iterator[redis.Redis]:
    """A plain client on a store with nothing at all, not even where the stream had ended."""
    with client_of_empty_store(store_url) as client:
        yield client


@pytest.fixture(scope="module")
def service(store_url: str) -> Iterator[Service]:
    with serving(store_url) as service:
        yield service


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the examples as modules."""
    node_folder(tmp_path, "redis", "eventsource")
    for mark, example in EXAMPLES.items():
        (tmp_path / f"{mark}.mjs").write_text(example.code)
    return tmp_path


@pytest.fixture
def follower_url(store_url: str) -> Iterator[str]:
    """The store's address for a user with the permissions on the page; none may be missing."""
    (line,) = examples("node.md", "acl")
    with redis.Redis.from_url(store_url) as client, reserved_ports(1) as (port,):
        client.execute_command(*line.code.replace("PASSWORD", "secret").split())
        client.acl_log_reset()
        client.config_set("port", port)  # npm's redis takes no user in the address of a socket
        yield f"redis://mail:secret@127.0.0.1:{port}"
        assert [(entry["reason"], entry["object"]) for entry in client.acl_log()] == []
        client.config_set("port", 0)


def send(service: Service, user_id: str, member: bool = True) -> None:
    assert service.post(payloads.identify(user_id, TRAIT, member)).status == 200


def printed(mark: str, folder: Path, env: dict[str, str]) -> list[str]:
    """What an example prints. Its connections would keep it running."""
    (folder / "run.mjs").write_text(f'await import("./{mark}.mjs");\nprocess.exit();\n')
    return run_node(folder, "run.mjs", env=env).splitlines()


def test_page__every_example__is_run_by_a_test() -> None:
    run = {"lookup", "partitions", "follow", "http-lookup", "http-follow", "relay"}
    assert set(EXAMPLES) == run
    assert len(examples("node.md", "js")) == len(run)


@pytest.mark.parametrize("mark", ["lookup", "partitions", "http-lookup"])
def test_lookups__print_what_the_page_says(
    mark: str, service: Service, store_url: str, folder: Path
) -> None:
    send(service, "alice")
    env = {"REDIS_URL": store_url, "COHORTS_URL": service.url, "COHORTS_KEY": READ_KEY}
    assert EXAMPLES[mark].printed
    # On a busy machine, a lookup may take longer than its timeout.
    wait_until(lambda: printed(mark, folder, env) == EXAMPLES[mark].printed)


HUNG = """
import { createInterface } from "node:readline";
import { isMember } from "./lookup.mjs";

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
console.log("ready");
await lines.next();
const began = performance.now();
let defaults = 0;
for (let n = 0; n < 1000; n++) defaults += await isMember("bob", "abc123", true);
console.log("hung", defaults, Math.round(performance.now() - began));
await lines.next();
const pause = () => new Promise((done) => setTimeout(done, 20));
while ((await isMember("bob", "abc123", "?")) !== false) await pause();
console.log("back", await isMember("alice", "abc123"));
process.exit();
"""


@thorough
def test_lookup__while_the_store_hangs__costs_little_and_is_right_again_after_it(
    folder: Path,
) -> None:
    (folder / "hung.mjs").write_text(HUNG)
    with store_folder() as place:
        store = start_store(place)
        try:
            with serving(socket_url(place)) as service:
                send(service, "alice")
            with Program(folder, "hung.mjs", {"REDIS_URL": socket_url(place)}) as program:
                program.wait_for("ready")
                store.send_signal(signal.SIGSTOP)
                program.say()
                _, defaults, took_ms = program.wait_for("hung").split()
                assert (defaults, int(took_ms) < 3000) == ("1000", True), took_ms
                store.send_signal(signal.SIGCONT)
                program.say()
                assert program.wait_for("back") == "back true"
        finally:
            store.kill()
            store.wait(30)


def test_follow__killed_and_restarted__misses_nothing_and_keeps_the_order(
    service: Service, store_url: str, follower_url: str, folder: Path
) -> None:
    env = {"REDIS_URL": follower_url}
    expected = []

    def change(count: int) -> None:
        for _ in range(count):
            member = len(expected) % 2 == 0
            send(service, "alice", member)
            expected.append(f"abc123 {'entered' if member else 'left'} alice")

    with redis.Redis.from_url(store_url, decode_responses=True) as client:
        seen: list[str] = []
        with Program(folder, "follow.mjs", env) as program:
            wait_until(lambda: client.exists(STREAM) and client.xinfo_groups(STREAM))
            change(1)
            assert program.wait_for("abc123") == EXAMPLES["follow"].printed[0] == expected[0]
            change(20)
            wait_until(lambda: len(program.lines) > 3)
            program.process.kill()
            program.process.wait(30)
            seen += program.lines
        change(3)
        with Program(folder, "follow.mjs", env) as program:
            wait_until(lambda: client.xinfo_groups(STREAM)[0]["lag"] == 0)
            wait_until(lambda: client.xinfo_groups(STREAM)[0]["pending"] == 0)
            program.process.terminate()
            assert program.process.wait(30) == 0
            seen += program.lines
    # One change at most is repeated: the one that was not acknowledged.
    assert (
        seen == expected
        or [line for n, line in enumerate(seen) if n == 0 or line != seen[n - 1]] == expected
    )
    assert len(seen) <= len(expected) + 1


def test_follow__changes_trimmed_or_store_emptied_in_between__says_so(
    service: Service, store_url: str, follower_url: str, folder: Path
) -> None:
    with redis.Redis.from_url(store_url, decode_responses=True) as client:
        client.xgroup_create(STREAM, "mail", "$", mkstream=True)
        for n in range(6):
            send(service, "alice", n % 2 == 0)
        client.xtrim(STREAM, maxlen=2, approximate=False)
        with Program(folder, "follow.mjs", {"REDIS_URL": follower_url}) as program:
            wait_until(lambda: len(program.lines) >= 3)
            lost = "changes were lost: read the cohorts again"
            assert program.lines == [lost, "abc123 entered alice", "abc123 left alice"]
            client.flushall()
            send(service, "bob")
            wait_until(lambda: len(program.lines) >= 5)
            assert program.lines[3:] == [lost, "abc123 entered bob"]


def test_follow__entries_erased_with_their_users__is_no_loss(
    service: Service, store_url: str, follower_url: str, folder: Path
) -> None:
    with redis.Redis.from_url(store_url, decode_responses=True) as client:
        send(service, "alice")
        client.xgroup_create(STREAM, "mail", "$")
        send(service, "erased")
        client.xdel(STREAM, client.xrevrange(STREAM, count=1)[0][0])
        send(service, "bob")
        with Program(folder, "follow.mjs", {"REDIS_URL": follower_url}) as program:
            assert program.wait_for("") == "abc123 entered bob"


def test_http_follow__cut_before_the_first_change__misses_nothing(
    service: Service, redis_client: redis.Redis, folder: Path
) -> None:
    proxy = Proxy(("127.0.0.1", int(service.url.rpartition(":")[2])))
    env = {"COHORTS_URL": f"http://127.0.0.1:{proxy.port}", "COHORTS_KEY": READ_KEY}
    try:
        with Program(folder, "http-follow.mjs", env) as program:
            program.wait_for("following")
            proxy.refuse(True)
            send(service, "alice")
            proxy.refuse(False)
            assert program.wait_for("abc123") == EXAMPLES["http-follow"].printed[0]
            redis_client.flushall()
            lost = program.lines.index(program.wait_for("changes were lost"))
            wait_until(lambda: "following" in program.lines[lost:])
            send(service, "bob")
            assert program.wait_for("abc123 entered bob")
    finally:
        proxy.close()
