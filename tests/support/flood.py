"""A process that sends one request after another on one connection, as fast as it can.

python -m tests.support.flood HOST PORT SECONDS < REQUEST
"""

from __future__ import annotations

import select
import socket
import sys
import time


def main(host: str, port: str, seconds: str) -> None:
    """Send what stands on standard input again and again; drop what is answered."""
    data = memoryview(sys.stdin.buffer.read() * 50)
    until = time.monotonic() + float(seconds)
    with socket.create_connection((host, int(port))) as sock:
        sock.setblocking(False)
        unsent = data
        while time.monotonic() < until:
            readable, writable, _ = select.select([sock], [sock], [], 0.1)
            if readable and not sock.recv(1 << 20):
                sys.exit("hung up")
            if writable:
                unsent = unsent[sock.send(unsent) :] or data


if __name__ == "__main__":
    main(*sys.argv[1:])
