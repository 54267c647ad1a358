"""The store and the service under test, as processes that can be killed and restarted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import redis
import urllib3

from tests.support.polling import wait_until
from tests.support.service import ROOT
from tests.support.stores import store_program


class StoreProcess:
    """A store that writes its append-only file before each reply."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.url = f"redis://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self.folder,
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
        }
        command = [store_program(), *(f"{w}" for k, v in options.items() for w in (f"--{k}", v))]
        with (self.folder / "store.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self.answers)

    def answers(self) -> bool:
        with redis.Redis.from_url(self.url, socket_timeout=1) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGCONT)
            self._process.terminate()
            self._process.wait(30)


class ServiceProcess:
    """gunicorn, started as in the Procfile."""

    def __init__(self, env: dict[str, str], log: Path, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._env = {"PATH": os.environ.get("PATH", ""), **env, "PORT": str(self.port)}
        self._process: subprocess.Popen[bytes] | None = None
        self._http = urllib3.PoolManager(retries=False, timeout=2)

    def start(self) -> None:
        command = [str(Path(sys.executable).with_name("gunicorn")), "wsgi:app"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=self._env, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self.answers)

    def answers(self) -> bool:
        try:
            return self._http.request("GET", f"{self.url}/healthz").status == 200
        except urllib3.exceptions.HTTPError:
            return False
        finally:
            self._http.clear()

    def workers(self) -> list[int]:
        """The process ids of the master's children."""
        assert self._process is not None
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self._process.pid)], capture_output=True, text=True
        )
        return [int(pid) for pid in listed.stdout.split()]

    def kill_master(self) -> None:
        """Kill it, and wait until its workers have noticed and exited."""
        assert self._process is not None
        workers = self.workers()
        self._process.kill()
        self._process.wait()
        wait_until(lambda: not any(_alive(pid) for pid in workers))

    def stop(self) -> int:
        """Stop it as a deployment does, and return the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(30)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
