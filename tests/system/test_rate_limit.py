"""How much of its limit a key gets while many clients use it at once, over all workers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import redis

from tests.support.effort import thorough
from tests.support.raw_http import AUTH, JSON, connect, head, status
from tests.support.service import running

LIMIT, CLIENTS = 1500, 32
BODY = b'{"type":"identify","userId":"u","traits":{"n: 1":true}}'


@thorough
def test_limit__used_by_many_clients_at_once__lets_nearly_all_of_it_through(
    store_url: str, redis_client: redis.Redis
) -> None:
    request = head(AUTH, JSON, f"Content-Length: {len(BODY)}") + BODY
    env = {"REDIS_URL": store_url, "RATE_LIMIT": f"{LIMIT}/hour", "WEB_CONCURRENCY": "2"}
    with running(env) as service:

        def send(_: int) -> int:
            passed = refused = 0
            with connect(service) as sock:
                while refused < 3:
                    sock.sendall(request)
                    if status(sock.recv(65536)) == 200:
                        passed += 1
                    else:
                        refused += 1
            return passed

        with ThreadPoolExecutor(CLIENTS) as pool:
            passed = sum(pool.map(send, range(CLIENTS)))
    # A worker may hold back what it has counted in advance.
    assert 0.96 * LIMIT <= passed <= LIMIT
