"""A sink: replies 200 to every request at minimal cost, to measure how fast the simulator sends.

It reads nothing but the length of each body. `python -m simulator.sink` prints its port, serves
until standard input ends, then prints `{"requests", "bytes"}`.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_BODY = b'{"list_id":1}\n'
_REPLY = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_BODY)
) + _BODY


class Sink(asyncio.Protocol):
    """One connection. `requests` and `received` (bytes of bodies) are totals of all connections."""

    requests = 0
    received = 0

    def __init__(self) -> None:
        self._head = b""
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        while data:
            if self._left:
                taken = min(self._left, len(data))
                self._left -= taken
                data = data[taken:] if taken < len(data) else b""
            else:
                self._head += data
                end = self._head.find(b"\r\n\r\n")
                if end < 0:
                    return
                length = _LENGTH.search(self._head, 0, end + 2)
                self._left = int(length[1]) if length else 0
                Sink.requests += 1
                Sink.received += self._left
                data, self._head = self._head[end + 4 :], b""
            if not self._left:
                self._transport.write(_REPLY)


async def serve() -> None:
    """Serve on a free loopback port until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Sink, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)
    server.close()
    print(json.dumps({"requests": Sink.requests, "bytes": Sink.received}))


if __name__ == "__main__":
    asyncio.run(serve())
