"""Starts the service as production does, in processes of its own, on a free port."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
import urllib3

from tests.support.polling import DEADLINE, wait_until

ROOT = Path(__file__).resolve().parents[2]
GUNICORN = (str(Path(sys.executable).with_name("gunicorn")), "wsgi:app")
KEY = "TEST_API_KEY"
ADMIN_KEY = "TEST_ADMIN_KEY"
APP = "TEST_APP_ID"
COHORT_PATH = "/api/v1/integration/amplitude/cohort"
# Less than what the service waits for the next request on a connection.
IDLE_SECONDS = 2.0


class Service:
    """A running service: its address, its log lines and its process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._url: str | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.http = urllib3.PoolManager(retries=False, timeout=DEADLINE, maxsize=16)
        self._last_sent = 0.0

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            # gunicorn's word, or that of `make run`
            if told := re.search(r"(?:Listening at:|listens on) http://[^ ]+:(\d+)", line):
                self._url = f"http://127.0.0.1:{told[1]}"

    @property
    def url(self) -> str:
        """The address, once the service has told it."""
        assert self._url, self.output()
        return self._url

    def output(self) -> str:
        return "".join(self.lines)

    def events(self) -> list[dict[str, Any]]:
        """The log lines that are JSON.

        A runner's own words may follow one in the same line: it writes a line and its end apart,
        and a signal may come between the two.
        """
        decode = json.JSONDecoder().raw_decode
        return [decode(line)[0] for line in self.lines if line.startswith("{")]

    def wait_until_listening(self) -> None:
        wait_until(lambda: self._url is not None or self.process.poll() is not None)
        url = self.url
        wait_until(lambda: _answers(self.http, f"{url}/healthz"))

    def request(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> urllib3.BaseHTTPResponse:
        """Send a request, with the key as Basic's username unless ``headers`` say otherwise."""
        sent = {"Content-Type": "application/json", **headers}
        if not headers.keys() & {"Authorization", "api_key"}:
            sent.update(urllib3.make_headers(basic_auth=f"{KEY}:"))
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        # Connections that rested may be closed by the service just as something is sent on them.
        if time.monotonic() - self._last_sent > IDLE_SECONDS:
            self.http.clear()
        self._last_sent = time.monotonic()
        return self.http.request(method, self.url + path, body=data, headers=sent)

    def post(self, body: Any, path: str = COHORT_PATH, **headers: str) -> urllib3.BaseHTTPResponse:
        return self.request("POST", path, body, **headers)

    def hang_up(self) -> None:
        """Close the idle connections: a service that is told to stop waits for them."""
        if self._url:
            self.http.connection_from_url(self._url).close()

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Stop it and wait until all that it printed is here. Returns the exit code."""
        self.hang_up()
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        code = self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


class SlowRequest:
    """A request whose body arrives in two parts, with all the time in between."""

    def __init__(self, service: Service, body: bytes, key: str = KEY, **headers: str) -> None:
        address = service.url.removeprefix("http://").split(":")
        self._socket = socket.create_connection((address[0], int(address[1])), DEADLINE)
        sent = {
            "Host": "localhost",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            # The service answers this as soon as it works on the request.
            "Expect": "100-continue",
            **urllib3.make_headers(basic_auth=f"{key}:"),
            **headers,
        }
        lines = [f"POST {COHORT_PATH} HTTP/1.1", *(f"{k}: {v}" for k, v in sent.items())]
        self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        self._rest = body

    def __enter__(self) -> SlowRequest:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def begin(self) -> None:
        """Wait until the service works on the request; then send half of the body."""
        started = self._socket.recv(4096)
        assert started.startswith(b"HTTP/1.1 100 "), started
        half = len(self._rest) // 2
        self._socket.sendall(self._rest[:half])
        self._rest = self._rest[half:]

    def finish(self) -> bytes:
        """Send the rest. Returns the reply as it came."""
        self._socket.sendall(self._rest)
        return b"".join(iter(lambda: self._socket.recv(65536), b""))


def _answers(http: urllib3.PoolManager, url: str) -> bool:
    try:
        return http.request("GET", url).status == 200
    except urllib3.exceptions.HTTPError:
        return False


@contextmanager
def running(
    env: dict[str, str], command: Sequence[str] = GUNICORN, cwd: Path = ROOT
) -> Iterator[Service]:
    """Start ``command`` with nothing of the environment but ``env`` and PATH.

    One worker unless ``env`` says otherwise: each worker more takes half a second of a processor.
    """
    clean = {
        "WEB_CONCURRENCY": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        "PORT": "0",
        "API_KEYS": f"{APP}:{KEY}",
        "PYTHONUNBUFFERED": "1",
        **env,
    }
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=clean,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    service = Service(process)
    try:
        service.wait_until_listening()
        yield service
    finally:
        try:
            service.stop()
        except subprocess.TimeoutExpired:
            process.kill()
            service.stop()


def stored(client: redis.Redis) -> list[str]:
    """Keys of users, members and changes. The history of the tests before may still come in."""
    parts = ("user:*", "*:members", "changes")
    return [key for part in parts for key in client.keys(f"cohorts:{{*}}:{part}")]
