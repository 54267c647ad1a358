"""Options shared by several commands, and their parsing."""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import click

from .. import payloads
from ..connection import AUTHS, Connection, InvalidTarget, Target, percent_encode
from ..reader import HttpReader, Reader, ReaderError, RedisReader
from ..upstream import ALWAYS, FAULTS, Upstream
from .exit_codes import ExitCode

DEFAULT_TIMEOUT_SECONDS = 30.0
CONNECT_TIMEOUT_SECONDS = 5

Function = TypeVar("Function", bound=Callable[..., Any])


def _combine(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Combine several options into one decorator."""

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def percent_encoded(_: object, __: object, path: str | None) -> str | None:
    """Percent-encode the value of a path option (a click callback)."""
    return path and percent_encode(path)


def _not_empty(_: object, __: object, app_id: str | None) -> str | None:
    """Refuse an empty app id (a click callback), such as from an unset shell variable."""
    if app_id == "":
        raise click.BadParameter("must not be empty.")
    return app_id


def target_options(*, url_required: bool = True) -> Callable[[Function], Function]:
    """Where to send requests, and with which key."""
    return _combine(click.argument("url", required=url_required), *_KEY_OPTIONS)


_KEY_OPTIONS = (
    click.option(
        "--key",
        envvar="SIMULATOR_KEY",
        help="The API key to send. [env var: SIMULATOR_KEY]",
    ),
    click.option("--app-id", callback=_not_empty, help="Sent as app_id with --auth headers."),
    click.option(
        "--auth",
        type=click.Choice(AUTHS),
        default="basic",
        show_default=True,
        help="How to send the key: as the user name of Basic, in the header api_key (with app_id), "
        "as a Bearer token, or not at all.",
    ),
    click.option("--header", multiple=True, metavar="'NAME: VALUE'", help="An additional header."),
)

path_options = _combine(
    click.option(
        "--path",
        default=payloads.COHORT_PATH,
        show_default=True,
        callback=percent_encoded,
        help="Path for identifies and batches.",
    ),
    click.option(
        "--lists-path",
        default=payloads.LISTS_PATH,
        show_default=True,
        callback=percent_encoded,
        help="Path for list creation; /<list id>/add and /remove are below it.",
    ),
    click.option(
        "--webhook-path",
        default=payloads.WEBHOOK_PATH,
        show_default=True,
        callback=percent_encoded,
        help="Path for Cohort Webhooks.",
    ),
)

reader_options = _combine(
    click.option(
        "--reader",
        "reader_url",
        metavar="URL",
        help="Read the receiver's state back and compare it with the expected state: from its "
        "store (redis://, rediss:// or unix://) or its HTTP API (http:// or https://).",
    ),
    click.option(
        "--reader-key",
        default="",
        metavar="KEY",
        help="An API key with the scope read, for a reader over HTTP.",
    ),
    click.option(
        "--key-prefix",
        default="cohorts",
        show_default=True,
        help="The receiver's KEY_PREFIX, for a reader of the store.",
    ),
    click.option(
        "--app", default="default", show_default=True, help="The app to read from the store."
    ),
    click.option(
        "--partitions",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="The receiver's STORE_PARTITIONS, for a reader of the store.",
    ),
)

upstream_options = _combine(
    click.option(
        "--upstream-keys",
        metavar="API_KEY:SECRET_KEY",
        envvar="SIMULATOR_UPSTREAM_KEYS",
        default="simulated-api-key:simulated-secret-key",
        show_default=True,
        help="The keys that the Behavioral Cohorts API accepts. [env var: SIMULATOR_UPSTREAM_KEYS]",
    ),
    click.option(
        "--anonymous",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Users without an id: they count in the cohort's size and are never synced.",
    ),
    click.option(
        "--job-seconds",
        type=click.FloatRange(0),
        default=1.0,
        show_default=True,
        help="How long an export takes.",
    ),
    click.option(
        "--upstream-fault",
        "upstream_faults",
        multiple=True,
        metavar="NAME[=COUNT]",
        help="A fault of the Behavioral Cohorts API, for all requests or the next COUNT: "
        f"{', '.join(FAULTS)}.",
    ),
)


def parse_upstream_keys(text: str) -> tuple[str, str]:
    """Parse `API_KEY:SECRET_KEY`."""
    api_key, _, secret_key = text.partition(":")
    if not (api_key and secret_key):
        raise click.UsageError("--upstream-keys must be API_KEY:SECRET_KEY")
    return api_key, secret_key


def parse_upstream_faults(texts: tuple[str, ...]) -> dict[str, int]:
    """Parse `NAME[=COUNT]` texts."""
    faults = {}
    for text in texts:
        name, equals, count = text.partition("=")
        if name not in FAULTS or (equals and not count.isdecimal()):
            known = ", ".join(FAULTS)
            raise click.UsageError(f"--upstream-fault {text!r} must be NAME[=COUNT] of {known}")
        faults[name] = int(count) if equals else ALWAYS
    return faults


def open_upstream(port: int, keys: str, job_seconds: float, faults: tuple[str, ...]) -> Upstream:
    """Create the Behavioral Cohorts API on a port; 0 picks a free one."""
    parsed = parse_upstream_faults(faults)
    try:
        upstream = Upstream(keys=parse_upstream_keys(keys), port=port, job_seconds=job_seconds)
    except OSError as error:
        raise click.UsageError(f"Cannot listen on port {port}: {error.strerror}") from None
    upstream.faults.update(parsed)
    return upstream


def parse_cohort(text: str) -> tuple[str, str]:
    """Parse `NAME:ID`; the id follows the last colon."""
    name, _, cohort_id = text.rpartition(":")
    if not (name and cohort_id.strip()):
        raise click.UsageError("--cohort must be NAME:ID")
    return name, cohort_id.strip()


def parse_headers(lines: tuple[str, ...]) -> dict[str, str]:
    """Parse `NAME: VALUE` lines."""
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise click.UsageError(f"--header {line!r} must be 'NAME: VALUE'")
        headers[name.strip()] = value.strip()
    return headers


def check_target(target: Target) -> None:
    """Fail if the target's address or headers are invalid."""
    try:
        Connection(target)
    except InvalidTarget as error:
        raise click.UsageError(str(error)) from None


def check_reachable(target: Target) -> None:
    """Fail if the target is invalid or nothing listens there."""
    check_target(target)
    parts = urlsplit(target.url)
    address = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection(address, CONNECT_TIMEOUT_SECONDS) as connection:
            if problem := _protocol_problem(connection, target.url):
                exit_with(ExitCode.UNREACHABLE, problem)
    except (OSError, UnicodeError) as error:  # UnicodeError: an invalid host name
        reason = getattr(error, "strerror", None) or error
        exit_with(ExitCode.UNREACHABLE, f"Cannot connect to {target.url}: {reason}")


def _protocol_problem(connection: socket.socket, url: str) -> str | None:
    """Why the server does not speak the protocol in `url`; None if it does."""
    scheme, rest = url.split("://", 1)
    host = urlsplit(url).hostname or ""
    if scheme == "https":
        try:
            ssl.create_default_context().wrap_socket(connection, server_hostname=host).close()
        except ssl.SSLCertVerificationError as error:
            return f"The certificate of {url} is not trusted: {error.verify_message}"
        except (ssl.SSLError, ConnectionError):
            return f"The server does not speak HTTPS. Try http://{rest}"
        return None
    connection.sendall(f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    try:
        reply = connection.recv(2000)
    except ConnectionError:
        reply = b""
    except TimeoutError:
        return None  # the command has its own time limit for slow receivers
    if not reply.startswith(b"HTTP/") or b"to HTTPS port" in reply:
        return f"The server does not speak HTTP. Try https://{rest}"
    return None


def refused_key(target: Target, reply: str) -> str:
    """Return the message for a receiver that refuses the key; `reply` is its reply."""
    if target.key is None and target.auth != "none" and not target.extra_headers:
        return "The receiver needs a key. Give it as --key, or in the variable SIMULATOR_KEY."
    return f"The receiver refuses the key: {reply}"


def wait_for_ctrl_c() -> None:
    """Return once the user has pressed Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        click.echo("Press Ctrl-C to stop it.", err=True)
        threading.Event().wait()


def open_reader(url: str | None, key: str, prefix: str, app: str, partitions: int) -> Reader | None:
    """Open the reader at `url` and try it; None without a URL."""
    if url is None:
        return None
    reader: Reader
    try:
        if url.startswith(("http://", "https://")):
            reader = HttpReader(url, key)
        else:
            reader = RedisReader(url, prefix=prefix, app=app, partitions=partitions)
        reader.traits(["-"])
    except ReaderError as error:
        raise click.UsageError(f"--reader: {error}") from None
    return reader


def nothing_found(url: str) -> str:
    """Return the message for a reader at `url` that finds none of the acknowledged users."""
    if url.startswith(("http://", "https://")):
        hint = "Is --reader-key of the same app as --key?"
    else:
        hint = "Are --app, --key-prefix and --partitions those of the receiver?"
    return f"The reader found none of the users that the receiver acknowledged. {hint}"


def exit_with(code: ExitCode, message: str) -> NoReturn:
    """Print an error and exit."""
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)
