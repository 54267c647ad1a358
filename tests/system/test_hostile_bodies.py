"""Bodies that are made to hurt: they are refused, cost a bounded memory, and leave no trace."""

from __future__ import annotations

import gzip
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import redis

from simulator.payloads import COHORT_PATH, WEBHOOK_PATH, batch, identify
from tests.support.effort import some, thorough
from tests.support.polling import DEADLINE, wait_until
from tests.support.raw_http import AUTH, JSON, connect, head, status
from tests.support.service import APP, KEY, Service, running, stored

LIMIT = 8 << 20  # the service's MAX_BODY_BYTES, by default
LONGEST_WAIT = 0.5  # of another app's call, in seconds
MOST_MEMORY = 64 << 20  # over idle, of all its processes together
GZIP = {"Content-Encoding": "gzip"}
GOOD = json.dumps(identify("u", "n: 1", True))
QUIET_KEY, READ_KEY = "the-quiet-key", "the-read-key"
MOST_COHORTS = 10_000  # that a call may name
BASE = f"cohorts:{{{APP}}}:"


def zeros(size: int) -> bytes:
    """gzip of so many spaces, about a thousandth of that."""
    packer = zlib.compressobj(9, wbits=31)
    block = b" " * (1 << 20)
    return b"".join(packer.compress(block) for _ in range(size >> 20)) + packer.flush()


def filled(item: str) -> bytes:
    """gzip of a JSON body that is as large as it may be, and holds an item as often as it can."""
    start, end = '{"batch": [', "]}"
    count = (LIMIT - len(start) - len(end)) // (len(item) + 1)
    return gzip.compress((start + ",".join([item] * count) + end).encode(), 1)


BOMBS = {
    "a gigabyte": lambda: zeros(1 << 30),
    "many members": lambda: zeros(1 << 20) * 64,
    "a byte too many": lambda: zeros(LIMIT) + gzip.compress(b" "),
    "empty lists": lambda: filled("[]"),
    "small objects": lambda: filled('{"":0}'),
    "short strings": lambda: filled('"ab"'),
    "numbers": lambda: filled("1e9"),
    "wide object": lambda: gzip.compress(
        ("{" + ",".join(f'"{n:x}":[]' for n in range(600_000)) + "}").encode()[:LIMIT], 1
    ),
    "wide traits": lambda: gzip.compress(
        json.dumps(
            {**identify("u", "n", True), "traits": {f"{n:x}:{n:x}": True for n in range(300_000)}}
        ).encode(),
        1,
    ),
}


def processes(service: Service) -> list[psutil.Process]:
    parent = psutil.Process(service.process.pid)
    return [parent, *parent.children(recursive=True)]


def memory(service: Service) -> int:
    """Bytes that the service's processes hold now."""
    return sum(process.memory_info().rss for process in processes(service))


def forget_peak(service: Service) -> None:
    for process in processes(service):
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def peak(service: Service) -> int:
    """Bytes that they held at most, each at its own time, since that was last forgotten."""
    total = 0
    for process in processes(service):
        text = Path(f"/proc/{process.pid}/status").read_text()
        total += int(text.split("VmHWM:")[1].split()[0]) << 10
    return total


@thorough
def test_bombs__of_every_kind_at_once__are_refused_in_bounded_memory(
    service: Service, redis_client: redis.Redis
) -> None:
    bombs = [make() for make in BOMBS.values()]
    large = json.dumps(batch([f"user-{n}" for n in range(10_000)], "n: 1", True)).encode()
    for _ in range(8):
        assert service.post(large).status == 200  # idle is what remains after ordinary work
    redis_client.flushdb()
    idle = memory(service)
    forget_peak(service)

    answers: list[int] = []

    def send(bomb: bytes) -> None:
        for _ in range(3):
            answers.append(service.post(bomb, **GZIP).status)

    threads = [threading.Thread(target=send, args=(bomb,)) for bomb in bombs * 2]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert service.post(GOOD.encode()).status == 200
    assert answers == [413] * 6 * len(bombs)
    over_idle = peak(service) - idle
    assert over_idle <= MOST_MEMORY, f"{over_idle >> 20} MB over idle"
    assert redis_client.keys(f"{BASE}user:*") == [f"{BASE}user:u"]


def webhook_bombs() -> dict[str, tuple[bytes, set[int]]]:
    """Messages as large as they may be, and the statuses of their replies."""

    def filled(start: bytes, item: bytes, end: bytes) -> bytes:
        room = 2 * LIMIT - len(start) - len(end)
        return gzip.compress(start + b",".join([item] * (room // (len(item) + 1))) + end, 1)

    message = b'{"cohort_name":"n","cohort_id":"1","in_cohort":true,"users":['
    user = b'{"user_id":"a","user_properties":'
    return {
        "users": (filled(message, b"{}", b"]}"), {400}),
        "lists for users": (filled(message, b"[]", b"]}"), {400}),
        "an id of lists": (filled(message + b'{"user_id":[', b"[]", b"]}]}"), {404}),
        "a name of lists": (filled(message + b'],"cohort_name":[', b"[]", b"]}"), {400}),
        "properties of lists": (filled(message + user + b"[", b"[]", b"]}]}"), {200}),
        "other members": (filled(message + b'],"x":[', b'{"":0}', b"]}"), {200}),
    }


@thorough
def test_webhook_bombs__of_every_kind_at_once__are_answered_in_bounded_memory(
    service: Service,
) -> None:
    bombs = webhook_bombs()
    for _ in range(8):
        assert service.post(GOOD.encode()).status == 200
    idle = memory(service)
    forget_peak(service)
    with ThreadPoolExecutor(len(bombs)) as pool:
        sent = {
            name: [pool.submit(service.post, bomb, WEBHOOK_PATH, **GZIP) for _ in range(3)]
            for name, (bomb, _) in bombs.items()
        }
        for name, replies in sent.items():
            assert {reply.result().status for reply in replies} == bombs[name][1], name
    over_idle = peak(service) - idle
    # Each worker decompresses one at a time: parts and the whole. Decoded, 8 MiB take 200.
    assert over_idle <= 3 * MOST_MEMORY, f"{over_idle >> 20} MB over idle"


@pytest.fixture(scope="module")
def alone(store_url: str) -> Iterator[Service]:
    """A service of one worker, with a quiet app beside the one that asks for much."""
    keys = f"{APP}:{KEY},quiet:{QUIET_KEY}"
    env = {"REDIS_URL": store_url, "RATE_LIMIT": "off", "WEB_CONCURRENCY": "1", "API_KEYS": keys}
    with running({**env, "READ_API_KEYS": f"{APP}:{READ_KEY}"}) as service:
        assert quiet_call(service) < DEADLINE
        yield service


def quiet_call(service: Service) -> float:
    """Seconds that a call of the quiet app takes."""
    started = time.monotonic()
    assert service.post(GOOD.encode(), api_key=QUIET_KEY).status == 200
    return time.monotonic() - started


def keeps_turns(service: Service, work: Callable[[], None]) -> bool:
    """Whether the quiet app's calls are answered soon while something else is asked for.

    Without turns, one of them waits until all of that is done. In one of four attempts, as other
    programs may use the machine.
    """

    def is_soon() -> bool:
        waits, began = [0.0], time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(work)
            while not working.done():
                waits.append(quiet_call(service))
            working.result()
        return max(waits) < max(LONGEST_WAIT, (time.monotonic() - began) / 4)

    return any(is_soon() for _ in range(4))


@thorough
def test_query__for_users_of_very_many_traits__is_answered_in_bounded_memory_and_turns(
    alone: Service, redis_client: redis.Redis
) -> None:
    traits = dict.fromkeys((f"A cohort with a name: {n}" for n in range(20_000)), "true")
    users = [f"user-{n}" for n in range(30)]
    for user in users:
        redis_client.hset(f"{BASE}user:{user}", mapping=traits)
    sizes: list[int] = []

    def ask(users: list[str]) -> None:
        body = json.dumps({"userIds": users}).encode()
        lines = (f"api_key: {READ_KEY}", JSON, f"Content-Length: {len(body)}", "Connection: close")
        with connect(alone) as sock:
            sock.sendall(head(*lines, path="/api/v1/users/query") + body)
            sizes.append(sum(map(len, iter(partial(sock.recv, 1 << 20), b""))))

    ask(users[:1])
    idle = memory(alone)
    forget_peak(alone)
    assert keeps_turns(alone, lambda: ask(users))
    assert peak(alone) - idle <= MOST_MEMORY
    assert sizes[-1] > 0.9 * len(users) * sizes[0]
    ask(users[:1] * 200)
    assert sizes[-1] < 1.1 * sizes[0]


def test_bombs__of_empty_members__leave_another_app_its_turns(alone: Service) -> None:
    bomb = gzip.compress(b"", mtime=0) * (LIMIT // 20)

    def send() -> None:
        with ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(lambda _: alone.post(bomb, **GZIP), range(4)))
        assert [reply.status for reply in replies] == [413] * 4

    assert keeps_turns(alone, send)


@pytest.mark.parametrize(
    "together",
    [
        pytest.param(True, id="of one user"),
        pytest.param(False, id="of many users", marks=thorough),
    ],
)
def test_traits__of_as_many_cohorts_as_a_call_may_name__leave_another_app_its_turns(
    alone: Service, redis_client: redis.Redis, together: bool
) -> None:
    names = [f"n: {n}" for n in range(MOST_COHORTS)]
    calls = [identify("u", "n", True)] if together else [identify(n, n, True) for n in names]
    if together:
        calls[0]["traits"] = dict.fromkeys(names, True)

    def send() -> None:
        assert alone.post({"batch": calls}).json()["accepted"] == len(calls)

    assert keeps_turns(alone, send)
    assert len(redis_client.keys(f"{BASE}cohort:*:members")) == MOST_COHORTS
    calls[-1]["traits"]["one: more"] = True
    assert alone.post({"batch": calls}).status == 413


def test_body__announced_as_huge__is_refused_before_any_of_it_is_read(service: Service) -> None:
    for length in (LIMIT + 1, 10**12, 10**30):
        with connect(service) as sock:
            sock.sendall(head(AUTH, JSON, f"Content-Length: {length}"))
            assert status(sock.recv(65536)) == 413


BLOCK = 0x10000
CHUNK = b"%x\r\n%b\r\n" % (BLOCK, b" " * BLOCK)


@pytest.mark.parametrize("key", [AUTH, "api_key: wrong"], ids=["good key", "bad key"])
@pytest.mark.parametrize(
    ("framing", "piece"),
    [("Transfer-Encoding: chunked", CHUNK), (f"Content-Length: {10**12}", b" " * BLOCK)],
    ids=["chunks", "length"],
)
def test_body__without_end__is_hung_up_on_in_bounded_memory(
    service: Service, key: str, framing: str, piece: bytes
) -> None:
    assert service.post(GOOD.encode()).status == 200
    idle = memory(service)
    forget_peak(service)
    with connect(service) as sock:
        sock.sendall(head(key, JSON, framing))
        sent = 0
        with suppress(OSError):  # it has hung up
            while sent < 1 << 30:
                sock.sendall(piece)
                sent += len(piece)
    assert sent < 64 << 20
    assert peak(service) - idle <= MOST_MEMORY


@pytest.mark.parametrize("framing", ["Transfer-Encoding: chunked", f"Content-Length: {LIMIT}"])
def test_forms__of_strangers_that_stall_in_large_ones__are_refused_in_bounded_memory(
    service: Service, framing: str
) -> None:
    assert service.post(GOOD.encode()).status == 200
    idle = memory(service)
    forget_peak(service)
    form = head("Content-Type: application/x-www-form-urlencoded", framing, path="/login")
    most = LIMIT - BLOCK
    body = CHUNK * (most // BLOCK) if "chunked" in framing else b"%41" * (most // 3)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(service)) for _ in range(30)]
        for sock in clients:
            sock.sendall(form)
            with suppress(OSError):  # it has hung up
                sock.sendall(body)
        assert {status(sock.recv(65536)) for sock in clients} == {413}
        assert service.post(GOOD.encode()).status == 200
        assert peak(service) - idle <= MOST_MEMORY


def test_body__too_large_but_not_endless__is_answered_and_the_connection_stays(
    service: Service,
) -> None:
    too_large = b" " * (LIMIT + 1)
    data = head(AUTH, JSON, f"Content-Length: {len(too_large)}") + too_large
    with connect(service) as sock:
        for _ in range(2):
            sock.sendall(data)
            assert status(sock.recv(65536)) == 413


def test_chunk_headers__without_end__are_cut_off(service: Service) -> None:
    with connect(service) as sock:
        sock.sendall(head(AUTH, JSON, "Transfer-Encoding: chunked") + b"1;")
        sent = 0
        try:
            while sent < 64 << 20:
                sent += sock.send(b"x" * 65536)
        except OSError:
            return
    pytest.fail("64 MB of a chunk's extension were taken")


DEEP = 100_000


@pytest.mark.parametrize(
    "text",
    [
        "[" * DEEP,
        "[" * DEEP + "]" * DEEP,
        '{"a":' * DEEP + "1" + "}" * DEEP,
        '{"batch":' * DEEP,
        '{"batch": [' + "[" * DEEP + "]" * DEEP + "]}",
        '{"type": "identify", "userId": "u", "traits": {"n: 1": ' + "[" * DEEP + "]" * DEEP + "}}",
        '{"context": ' * DEEP + "{}" + "}" * DEEP,
    ],
    ids=["open lists", "lists", "objects", "open objects", "in a batch", "in traits", "context"],
)
def test_nesting__however_deep__is_a_400(service: Service, text: str) -> None:
    reply = service.post(text.encode())
    assert (reply.status, reply.json()["reason"]) == (400, "invalid_json")


def test_nesting__as_deep_as_the_parser_takes__is_refused_with_its_place(service: Service) -> None:
    deep = 1000 * "[" + 1000 * "]"
    for body in (
        f'{{"batch": {deep}}}',
        f'{{"type": "identify", "userId": {deep}, "traits": {deep}}}',
    ):
        reply = service.post(body.encode())
        assert (reply.status, reply.json()["reason"]) == (400, "invalid_payload")
        assert len(reply.data) < 2000


NUMBERS = ["1e400", "-1e400", "1e-400", "9" * 400, "-" + "9" * 400, "1" * 5000]
NO_NUMBERS = ["NaN", "Infinity", "-Infinity", "0x10", "01", "+1", "1.", ".5", "1e", "1_0", "--1"]


@pytest.mark.parametrize("number", some(NUMBERS + NO_NUMBERS))
def test_numbers__huge_or_none__are_a_400_wherever_they_stand(
    service: Service, redis_client: redis.Redis, number: str
) -> None:
    for path, body in (
        (COHORT_PATH, f'{{"type": "identify", "userId": {number}, "traits": {{"n: 1": true}}}}'),
        (COHORT_PATH, f'{{"type": "identify", "userId": "u", "traits": {{"n: 1": {number}}}}}'),
        (WEBHOOK_PATH, webhook(computed_time=number)),
        (COHORT_PATH, number),
    ):
        reply = service.post(body.encode(), path)
        reasons = {400: ("invalid_json", "invalid_payload"), 404: ("invalid_user_id",)}
        assert reply.json()["reason"] in reasons[reply.status], (path, body)
    assert stored(redis_client) == []


@pytest.mark.parametrize("number", ["1" * 30, str(2**63), str(2**64), str(-(2**63) - 1)])
def test_ids__as_numbers_beyond_64_bits__are_refused_rather_than_rounded(
    service: Service, redis_client: redis.Redis, number: str
) -> None:
    """Two users whose ids differ in the last digit must not become one."""
    for changes in ({"cohort_id": number}, {"users": f'[{{"user_id": {number}}}]'}):
        reply = service.post(webhook(**changes).encode(), WEBHOOK_PATH)
        kept = {key for key in redis_client.scan_iter(f"{BASE}*") if number in key}
        assert reply.status in (400, 404), reply.data
        assert not kept
        redis_client.flushdb()


def webhook(**changes: str) -> str:
    fields = {
        "cohort_name": '"n"',
        "cohort_id": '"1"',
        "in_cohort": "true",
        "users": '[{"user_id": "u"}]',
    }
    return "{" + ", ".join(f'"{k}": {v}' for k, v in {**fields, **changes}.items()) + "}"


def test_duplicate_keys__mean_what_the_last_one_says_and_nothing_else(
    service: Service, redis_client: redis.Redis
) -> None:
    """As every common parser has it: what a proxy has looked at is what is done."""
    body = (
        '{"type": "track", "type": "identify", "userId": "first", "userId": "last",'
        ' "traits": {"x: 9": true}, "traits": {"n: 1": false, "n: 1": true}}'
    )
    assert service.post(body.encode()).status == 200
    assert redis_client.keys(f"{BASE}user:*") == [f"{BASE}user:last"]
    assert redis_client.hgetall(f"{BASE}user:last") == {"n: 1": "true"}
    two = '{"batch": [{"type": "identify", "userId": "a", "traits": {"n: 1": true}}], "batch": []}'
    assert service.post(two.encode()).json()["accepted"] == 0


BAD_UTF8 = {
    "a lone continuation": b"\x80",
    "a continuation missing": b"\xc3",
    "a continuation missing in three": b"\xe2\x82",
    "a continuation missing in four": b"\xf0\x9f\x98",
    "an overlong slash": b"\xc0\xaf",
    "an overlong NUL": b"\xc0\x80",
    "overlong in three": b"\xe0\x80\xaf",
    "overlong in four": b"\xf0\x80\x80\xaf",
    "a high surrogate": b"\xed\xa0\x80",
    "a low surrogate": b"\xed\xb0\x80",
    "a pair of surrogates": b"\xed\xa0\xbd\xed\xb8\x80",
    "beyond Unicode": b"\xf4\x90\x80\x80",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "six bytes": b"\xfc\x84\x80\x80\x80\x80",
    "FE": b"\xfe",
    "FF": b"\xff",
    "Latin-1": "é".encode("latin-1"),
    "UTF-16": '{"a": 1}'.encode("utf-16-le"),
}
ESCAPES = {
    "a lone high surrogate": rb"\ud83d",
    "a lone low surrogate": rb"\ude00",
    "surrogates the wrong way round": rb"\ude00\ud83d",
    "an escaped NUL": rb"\u0000",
    "a cut escape": rb"\u12",
    "no escape": rb"\x41",
    "a bare NUL": b"\0",
    "a bare line break": b"\n",
}


@pytest.mark.parametrize("kind", some([*BAD_UTF8, *ESCAPES]))
def test_text__that_is_no_unicode__is_a_400_wherever_it_stands(
    service: Service, redis_client: redis.Redis, kind: str
) -> None:
    bad = {**BAD_UTF8, **ESCAPES}[kind]
    for place in (b'"userId": "u', b'"n: 1', b'"identify'):
        body = GOOD.encode().replace(place, place + bad, 1)
        assert bad in body
        reply = service.post(body)
        reasons = {400: ("invalid_json", "invalid_payload"), 404: ("invalid_user_id",)}
        assert reply.json()["reason"] in reasons[reply.status], (place, reply.data)
        assert reply.data.decode()  # what is said about it is text again
    assert stored(redis_client) == []


def test_text__of_every_kind_that_is_unicode__is_kept_as_it_came(
    service: Service, redis_client: redis.Redis
) -> None:
    odd = ["é", "e\u0301", "\u202eabc", "\ufeffu", "\U0010ffff", "\ufffe", "\u200b", "😀", "\x7f"]
    for user in odd:
        assert service.post(identify(user, f"{user}: 1", True)).status == 200
        assert redis_client.hgetall(f"{BASE}user:{user}").popitem()[1] == "true"
    wait_until(lambda: redis_client.zcard(f"{BASE}cohort:1:members") == len(odd))
