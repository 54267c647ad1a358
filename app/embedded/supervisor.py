"""Run the store and the service until standard input ends; restart the store if it exits.

Exit code 0 when its input ends; 1, with one line per problem, when it cannot start or continue.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from app.embedded import CannotRun
from app.embedded.data_dir import DataDir
from app.embedded.guide import guide
from app.embedded.processes import Stopped, exit_reason, say, stop, wait
from app.embedded.store import EmbeddedStore, shut_down
from app.settings import BadSettings, Settings

ROOT = Path(__file__).resolve().parents[2]
GUNICORN_CONF = ROOT / "app" / "server" / "gunicorn_conf.py"
HOST = "127.0.0.1"  # not the network: the keys are printed on the screen
BACKLOG = 2048
# A little more than gunicorn's graceful_timeout.
SERVICE_STOP_SECONDS = 8.8
POLL_SECONDS = 0.1
READY_TIMEOUT_SECONDS = 10.0
READY_PAUSE_SECONDS = 2.0

# The keys that are generated unless the user sets them: scope and setting.
GENERATED_KEYS = {"ingest": "API_KEYS", "admin": "ADMIN_API_KEYS"}


def main() -> int:
    folder = Path(os.environ.get("DATA_DIR") or "var")
    try:
        run(os.environ, DataDir(folder))
    except Stopped:
        return 0
    except (BadSettings, CannotRun) as error:
        for line in str(error).splitlines():
            say(line)
    except OSError as error:
        path = error.filename or folder
        say(f"Cannot use {path}: {error.strerror}. Fix this, or set DATA_DIR to another folder.")
    return 1


def run(environ: Mapping[str, str], data: DataDir) -> None:
    """Start everything and keep it running.

    It ends only by raising, and leaves nothing running.

    Raises:
        Stopped: standard input has ended.
        CannotRun, BadSettings, OSError: it cannot start or continue.
    """
    settings = Settings.from_environ(environ)
    data.create()
    with contextlib.ExitStack() as stack:
        locks = [] if settings.redis_url else [data.lock(wait, shut_down)]
        listener = stack.enter_context(listen(settings.port))
        keys = {s: data.key(s) for s, name in GENERATED_KEYS.items() if not environ.get(name)}
        env = {
            "STORE_MARKS_FILE": str(data.store_marks),
            **environ,
            "LOG_FORMAT": environ.get("LOG_FORMAT") or "text",
            **{GENERATED_KEYS[scope]: key for scope, key in keys.items()},
        }
        store = None
        if settings.redis_url:
            say("REDIS_URL is set: using that store, not starting one.")
        else:
            store = EmbeddedStore(data, locks[0])
            stack.callback(store.stop)
            store.start()
            env["REDIS_URL"] = store.url
        settings = Settings.from_environ(env)
        settings.check_service()

        service = subprocess.Popen(  # noqa: S603
            [
                *(sys.executable, "-m", "gunicorn", "--config", str(GUNICORN_CONF)),
                *("--logger-class", "app.embedded.gunicorn_logger.WarningsOnly"),
                *("--bind", f"fd://{listener.fileno()}", "app:create_app()"),
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=[listener.fileno(), *locks],
            cwd=ROOT,
            env=env,
        )
        stack.callback(stop, service, SERVICE_STOP_SECONDS)
        port = listener.getsockname()[1]
        listener.close()
        url = f"http://{HOST}:{port}"
        text = guide(url, settings, keys, data, store.socket if store else None)
        threading.Thread(target=greet, args=(port, text), daemon=True).start()

        while service.poll() is None:
            if store:
                store.restart_if_ended()
            wait(POLL_SECONDS)
        raise CannotRun(
            f"The service ended ({exit_reason(service.returncode)}). See its log above."
        )


def listen(port: int) -> socket.socket:
    """Open the service's socket, so that a taken port is found before anything is started."""
    try:
        return socket.create_server((HOST, port), backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CannotRun(
                f"Port {port} is already in use. Stop the program that listens on it, or choose "
                f"another port: PORT={port + 1 if port < 65535 else 8000} make run"
            ) from None
        raise CannotRun(f"Cannot listen on port {port}: {error.strerror}.") from None


def greet(port: int, text: str, pause: float = READY_PAUSE_SECONDS) -> None:
    """Print the guide as soon as the calls in it work."""
    told = False
    while (status := readiness(port)) != http.HTTPStatus.OK:
        # Without a reply, the service is still starting.
        if status is not None and not told:
            told = True
            say(f"The service listens on http://{HOST}:{port}, but its store is not available yet.")
        time.sleep(pause)
    with contextlib.suppress(OSError):
        print(text, flush=True)


def readiness(port: int) -> int | None:
    """The status of the readiness check; None without a reply."""
    connection = http.client.HTTPConnection(HOST, port, timeout=READY_TIMEOUT_SECONDS)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None


if __name__ == "__main__":
    sys.exit(main())
