"""Runs the service and its store together, and ends them together."""

from __future__ import annotations

import asyncio
import errno
import http.client
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from app.embedded.data import DataDir
from app.embedded.errors import CannotRun
from app.embedded.guide import Guide
from app.embedded.processes import Child, Guard
from app.embedded.store import EmbeddedStore, shut_down
from app.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"  # a key that was on a screen is not for the network
BACKLOG = 2048
# A little more than what gunicorn gives the requests in flight.
SERVICE_STOP_SECONDS = 8.8
READY_TIMEOUT_SECONDS = 10.0
READY_PAUSE_SECONDS = 2.0

# The keys that are made where the user sets none: scope and setting.
MADE_KEYS = {"ingest": "API_KEYS", "admin": "ADMIN_API_KEYS"}


async def run(environ: Mapping[str, str]) -> None:
    """Run until told to stop by SIGINT, SIGTERM or SIGHUP, and end everything in order.

    Raises:
        CannotRun, BadSettings: it can't start, or it can't go on. Nothing is left running.
    """
    task = asyncio.current_task()
    assert task is not None
    told_to_stop = False

    def stop() -> None:
        # Once: a second signal must not cut short what the first one has begun.
        nonlocal told_to_stop
        if not told_to_stop:
            told_to_stop = True
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        await _run(environ)
    except asyncio.CancelledError:
        if not told_to_stop:
            raise


async def _run(environ: Mapping[str, str]) -> None:
    settings = Settings.from_environ(environ)
    data = DataDir(Path(environ.get("DATA_DIR") or ROOT / "var"))
    data.create()
    made_keys = {s: data.key(s) for s, name in MADE_KEYS.items() if not environ.get(name)}
    env = {**environ, **{MADE_KEYS[scope]: key for scope, key in made_keys.items()}}

    async with AsyncExitStack() as stack:
        claims: list[int] = []
        store = None
        if not settings.redis_url:
            stack.callback(os.close, data.claim())
        listener = stack.enter_context(_listen(settings.port))
        if not settings.redis_url:
            claims.append(await data.claim_store(shut_down, say))
            stack.callback(os.close, claims[0])
        guard = Guard(claims)
        stack.callback(guard.dismiss)
        if settings.redis_url:
            say("REDIS_URL is set: that store is used, and none is started.")
        else:
            store = EmbeddedStore(data, guard, claims[0], say)
            stack.push_async_callback(store.stop)
            await store.start()
            env["REDIS_URL"] = store.url

        url = f"http://{HOST}:{listener.getsockname()[1]}"
        settings = Settings.from_environ(env)
        settings.check_service()
        guide = Guide(url, settings, made_keys, data, embedded=store is not None)
        service = Child("service", guard, SERVICE_STOP_SECONDS)
        stack.push_async_callback(service.stop)
        await service.start(
            [
                *(sys.executable, "-m", "gunicorn", "--config", str(ROOT / "gunicorn.conf.py")),
                *("--logger-class", "app.embedded.logger.Logger"),
                *("--bind", f"fd://{listener.fileno()}", "wsgi:app"),
            ],
            pass_fds=[listener.fileno(), *claims],
            cwd=ROOT,
            env=env,
        )
        listener.close()
        await _watch(service, store, guide)


async def _watch(service: Child, store: EmbeddedStore | None, guide: Guide) -> None:
    """Greet the user, and keep the store running for as long as the service runs."""
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_greet(guide))
            tasks.create_task(_fail_at_end(service))
            if store:
                tasks.create_task(store.keep_running())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def _fail_at_end(service: Child) -> None:
    raise CannotRun(f"The service has ended ({await service.wait()}). Its log above says why.")


async def _greet(guide: Guide) -> None:
    """Tell the user how to try the service, as soon as that works."""
    told = False
    while not await asyncio.to_thread(_ready, guide.url):
        if not told:
            told = True
            say(f"The service listens on {guide.url}, but can't use its store yet.")
        await asyncio.sleep(READY_PAUSE_SECONDS)
    print(guide.text(), flush=True)


def _ready(url: str) -> bool:
    connection = http.client.HTTPConnection(
        url.removeprefix("http://"), timeout=READY_TIMEOUT_SECONDS
    )
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _listen(port: int) -> socket.socket:
    """The service's socket. It is opened here so that nothing is started if it can't be had."""
    try:
        return socket.create_server((HOST, port), backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CannotRun(
                f"Port {port} is taken. Stop the program that listens there, or choose another "
                f"port: PORT={port + 1 if port < 65535 else 8000} make run"
            ) from None
        raise CannotRun(f"The service can't listen on port {port}: {error.strerror}.") from None


def say(line: str) -> None:
    """Print one line about the run itself."""
    print(f"cohort-receiver: {line}", file=sys.stderr, flush=True)
