"""Every setting of the service, declared once: name, type, default and help.

The environment is the only source. ``make docs`` writes ``docs/configuration.md`` from this file.
With an invalid value, the service does not start and prints one line per setting.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from limits import RateLimitItem, parse, parse_many
from marshmallow import EXCLUDE, Schema, ValidationError, validate
from marshmallow import fields as kinds

APP_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# Printable ASCII, no space, no comma, and no colon: Basic authentication ends the username there.
KEY = re.compile(r"[\x21-\x2b\x2d-\x39\x3b-\x7e]{1,256}")
KEY_PREFIX = re.compile(r"[A-Za-z0-9_.-]{1,64}")
STORE_URL = re.compile(r"(rediss?(\+sentinel)?|unix)://")
_DATABASE = re.compile(r"(/\d*)?/?")
_CLUSTER_URL = re.compile(r"rediss?://[^/?]*(/0?)?(\?.*)?")
_HOST = r"(?:\[[0-9a-fA-F:.]+\]|[^\s:/?#@\[\],]+)(?::\d{1,5})?"
SENTINEL_URL = re.compile(
    rf"(?P<scheme>rediss?)\+sentinel://(?:(?P<userinfo>[^\s/?#@\[\]]*)@)?"
    rf"(?P<hosts>{_HOST}(?:,{_HOST})*)/(?P<service>[^\s/?#@]+)(?:/(?P<db>\d*))?"
    r"(?:\?(?P<query>(?:&?sentinel_(?:username|password)=[^\s&#]*)+))?"
)
# The options that the query of a store's URL may contain, with their values, and further ones for
# TLS.
_OPTIONS = {"db": r"\d+", "username": ".*", "password": ".*"}
_TLS_OPTIONS = {
    **dict.fromkeys(("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"), ".+"),
    "ssl_cert_reqs": "none|optional|required",
    "ssl_check_hostname": "true|false",
}
# Not urlsplit: it refuses several hosts if one is an IPv6 address.
_LOCATION = re.compile(r"[^:/?#]*://(?:[^/?#]*@)?([^/?#]*)([^?#]*)")

DEFAULT_APP = "default"

MIN_KEY_LENGTH = 16
_SHORT = f"has fewer than {MIN_KEY_LENGTH} characters, so it may be guessed."
# Similarity (0 to 1) at which an unknown name is taken for a misspelt setting: REDIS_ULR is,
# Heroku's REDIS_TLS_URL is not.
_SIMILAR = 0.85

_MASK = "***"
_HTTP_URL = validate.Regexp(
    r"https?://[^\s/?#@]+(?:[/?][^\s#]*)?\Z", error="must be an http or https URL"
)


class BadSettings(Exception):
    """Settings that the service cannot start with; one line for each."""


@dataclass(frozen=True)
class ApiKey:
    """One key from the environment and the app that it belongs to. ``repr`` hides the key."""

    app_id: str
    key: str = field(repr=False)


@dataclass(frozen=True)
class AmplitudeKeys:
    """The keys of an app's project for Amplitude's own API. ``repr`` hides them."""

    app_id: str
    api_key: str = field(repr=False)
    secret_key: str = field(repr=False)


class _Flag(kinds.Boolean):
    """``true`` or ``false`` and nothing else, so that a typo is an error and not a value."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(truthy={"true"}, falsy={"false"}, **kwargs)


class _Keys(kinds.Field[tuple[ApiKey, ...]]):
    """A comma-separated list of ``app_id:key``; a bare ``key`` belongs to the app ``default``."""

    def _deserialize(self, value: str, *args: Any, **kwargs: Any) -> tuple[ApiKey, ...]:
        found = []
        for position, entry in enumerate(filter(None, (e.strip() for e in value.split(","))), 1):
            app_id, colon, key = entry.partition(":")
            if not colon:
                app_id, key = DEFAULT_APP, entry
            # The messages name the position and never the entry, which contains a secret.
            if not APP_ID.fullmatch(app_id):
                raise ValidationError(f"entry {position}: the app id must match {APP_ID.pattern}")
            if ":" in key:
                raise ValidationError(
                    f"entry {position}: the key must not contain a colon, because Basic "
                    "authentication ends the username there"
                )
            if not KEY.fullmatch(key):
                raise ValidationError(
                    f"entry {position}: the key must be 1 to 256 printable ASCII characters"
                )
            found.append(ApiKey(app_id, key))
        return tuple(found)


class _AmplitudeKeys(kinds.Field[tuple[AmplitudeKeys, ...]]):
    """A comma-separated list of ``app_id:api_key:secret_key``, one entry for each app."""

    def _deserialize(self, value: str, *args: Any, **kwargs: Any) -> tuple[AmplitudeKeys, ...]:
        found: dict[str, AmplitudeKeys] = {}
        for position, entry in enumerate(filter(None, (e.strip() for e in value.split(","))), 1):
            app_id, *keys = entry.split(":")
            # The messages name the position and never the entry, which contains secrets.
            if len(keys) != 2 or not all(KEY.fullmatch(key) for key in keys):
                raise ValidationError(
                    f"entry {position}: must be app_id:api_key:secret_key, each key of 1 to 256 "
                    "printable ASCII characters"
                )
            if not APP_ID.fullmatch(app_id):
                raise ValidationError(f"entry {position}: the app id must match {APP_ID.pattern}")
            if app_id in found:
                raise ValidationError(f"entry {position}: this app has an entry already")
            found[app_id] = AmplitudeKeys(app_id, *keys)
        return tuple(found.values())


class _Rate(kinds.Field[RateLimitItem | None]):
    """One rate as ``1000/second`` or ``20 per minute``; ``off`` for none."""

    def _deserialize(self, value: str, *args: Any, **kwargs: Any) -> RateLimitItem | None:
        if value == "off":
            return None
        try:
            (rate,) = parse_many(value)
        except ValueError:
            raise ValidationError("must be one rate, such as 1000/second, or off") from None
        return rate


def _setting(kind: kinds.Field[Any], *, default: Any, help: str, secret: bool = False) -> Any:
    """Declare a setting. A ``secret`` one is left out of ``repr``."""
    return field(
        default=default, repr=not secret, metadata={"kind": kind, "help": help, "secret": secret}
    )


def _whole(low: int, high: int) -> kinds.Integer:
    return kinds.Integer(validate=validate.Range(low, high))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings in force. Build it with :meth:`from_environ`, or by hand in a test."""

    port: int = _setting(
        _whole(0, 65535), default=8000, help="TCP port to listen on; 0 picks a free one."
    )
    web_concurrency: int = _setting(
        _whole(1, 256), default=2, help="Number of gunicorn worker processes."
    )
    worker_nice: int = _setting(
        _whole(0, 19),
        default=3,
        help="CPU niceness of workers (0 to 19), so that a store on the same machine comes first.",
    )
    redis_url: str | None = _setting(
        kinds.String(
            validate=validate.Regexp(
                STORE_URL,
                error="must begin with redis://, rediss://, unix://, redis+sentinel:// or "
                "rediss+sentinel://",
            )
        ),
        default=None,
        help="URL of the store: redis://, rediss:// (TLS), unix://, or with Sentinels "
        "redis+sentinel://user:password@host:port,host:port/service/db (rediss+sentinel:// for "
        "TLS). Required.",
        secret=True,
    )
    redis_tls_verify: bool = _setting(
        _Flag(),
        default=True,
        help="Verify the store's TLS certificate. Heroku's is self-signed and needs false.",
    )
    store_cluster: bool = _setting(
        _Flag(),
        default=False,
        help="The store is a cluster, and REDIS_URL names any of its nodes.",
    )
    store_wait_replicas: int = _setting(
        _whole(0, 9),
        default=0,
        help="Replicas that must acknowledge a write before the reply; 0 waits for none.",
    )
    store_wait_fsync: bool = _setting(
        _Flag(),
        default=False,
        help="With STORE_WAIT_REPLICAS: also wait until the write is on disk, on the primary and "
        "on these replicas.",
    )
    key_prefix: str = _setting(
        kinds.String(
            validate=validate.Regexp(
                rf"{KEY_PREFIX.pattern}\Z", error="must be 1 to 64 of A-Z a-z 0-9 _ . -"
            )
        ),
        default="cohorts",
        help="First part of every key in the store.",
    )
    store_partitions: int = _setting(
        _whole(1, 16384),
        default=1,
        help="Number of partitions of each app's keys. To change it, copy the data to "
        "another store with `store copy`.",
    )
    store_connections: int = _setting(
        _whole(1, 1000),
        default=8,
        help="Maximum connections to the store per worker; on a cluster, to each node.",
    )
    store_timeout_seconds: float = _setting(
        kinds.Float(validate=validate.Range(0.1, 60)),
        default=5.0,
        help="Timeout for connecting to the store and for each of its replies.",
    )
    store_marks_file: str | None = _setting(
        kinds.String(validate=validate.Length(1)),
        default=None,
        help="File that remembers the state of the store between two runs of the service, so that "
        "it notices data lost in between. `make run` has one in its data folder.",
    )
    api_keys: tuple[ApiKey, ...] = _setting(
        _Keys(),
        default=(),
        help="Keys that may send cohorts (scope ingest): comma-separated app_id:key; a bare key "
        "belongs to the app named default.",
    )
    read_api_keys: tuple[ApiKey, ...] = _setting(
        _Keys(), default=(), help="Keys that may read (scope read), in the form of API_KEYS."
    )
    admin_api_keys: tuple[ApiKey, ...] = _setting(
        _Keys(),
        default=(),
        help="Keys that may do anything (scope admin), in the form of API_KEYS.",
    )
    metrics_token: str | None = _setting(
        kinds.String(
            validate=validate.Regexp(
                rf"{KEY.pattern}\Z",
                error="must be 1 to 256 printable ASCII characters, no comma or colon",
            )
        ),
        default=None,
        help="Key that opens /metrics and nothing else. Keys with scope read or admin open it too.",
        secret=True,
    )
    user_policy: str = _setting(
        kinds.String(validate=validate.OneOf(["open", "known"])),
        default="open",
        help="open accepts every well-formed user id; known only registered users, and members "
        "of the cohort.",
    )
    max_batch_users: int = _setting(
        _whole(1, 1_000_000),
        default=10_000,
        help="Maximum users in one request. Imports have no limit.",
    )
    max_query_users: int = _setting(
        _whole(1, 100_000), default=1000, help="Maximum user ids in one query."
    )
    max_body_bytes: int = _setting(
        _whole(1024, 1 << 30),
        default=8 << 20,
        help="Maximum size of a request's body in bytes, after decompression. For Cohort Webhooks "
        "twice that; imports have no limit.",
    )
    body_timeout_seconds: float = _setting(
        kinds.Float(validate=validate.Range(0.1, 600)),
        default=20.0,
        help="Time in which a request's body must arrive; for imports, each 64 KiB of the file.",
    )
    keep_alive_seconds: float = _setting(
        kinds.Float(validate=validate.Range(1, 3600)),
        default=95.0,
        help="Time that a connection may wait for its next request. Must be longer than any proxy "
        "in front keeps connections: Heroku's router 90 s, most load balancers 60 s.",
    )
    head_timeout_seconds: float = _setting(
        kinds.Float(validate=validate.Range(0.1, 600)),
        default=5.0,
        help="Time in which the headers of a request must arrive; also how long a new connection "
        "may wait before its first request.",
    )
    send_timeout_seconds: float = _setting(
        kinds.Float(validate=validate.Range(0.1, 600)),
        default=20.0,
        help="Time that a reply may wait for a client that reads slowly or not at all. Each 4 KiB "
        "read adds a second, up to this limit.",
    )
    rate_limit: RateLimitItem | None = _setting(
        _Rate(), default=parse("1000/second"), help="Requests per key; off for no limit."
    )
    app_rate_limit: RateLimitItem | None = _setting(
        _Rate(),
        default=None,
        help="Requests per app, over all its keys; off (the default) for no limit.",
    )
    app_concurrency: int = _setting(
        _whole(1, 1000),
        default=3,
        help="Requests of one app that a worker handles at a time. Further ones wait, while those "
        "of other apps go first. At most one less than STORE_CONNECTIONS.",
    )
    auth_failure_rate_limit: RateLimitItem | None = _setting(
        _Rate(),
        default=parse("30/minute"),
        help="Failed credentials per address (per /64 for IPv6); off for no limit.",
    )
    proxy_hops: int = _setting(
        _whole(0, 10),
        default=0,
        help="Number of trusted proxies in front that set X-Forwarded-For and -Proto. "
        "Heroku has 1.",
    )
    require_https: bool = _setting(
        _Flag(),
        default=False,
        help="Refuse calls over plain HTTP, except for the health checks and /version. Needs "
        "PROXY_HOPS, as a proxy terminates TLS.",
    )
    changes_max_entries: int = _setting(
        _whole(1, 1 << 40),
        default=100_000,
        help="Approximate number of entries that each partition's change stream keeps.",
    )
    changes_max_age_hours: int = _setting(
        _whole(1, 24 * 365),
        default=168,
        help="Approximate age at which entries leave the change stream.",
    )
    history_max_requests: int = _setting(
        _whole(0, 10_000_000),
        default=100_000,
        help="Requests per app that the sync history keeps; 0 disables the history.",
    )
    history_max_syncs: int = _setting(
        _whole(1, 1_000_000),
        default=10_000,
        help="Syncs per app that the sync history keeps.",
    )
    history_max_age_hours: int = _setting(
        _whole(1, 24 * 365),
        default=720,
        help="Age at which syncs leave the sync history.",
    )
    history_left_out_users: int = _setting(
        _whole(0, 2000),
        default=1000,
        help="With USER_POLICY=known: how many ids of unregistered users are kept per sync, so "
        "that administrators can see who was left out. Kept for a week, for the last 100 such "
        "syncs; 0 keeps none.",
    )
    stream_heartbeat_seconds: float = _setting(
        kinds.Float(validate=validate.Range(0.1, 600)),
        default=15.0,
        help="Interval of heartbeats on a change stream; must be shorter than any proxy's timeout.",
    )
    max_followers: int = _setting(
        _whole(0, 900),
        default=100,
        help="Maximum change streams per app that one worker serves at a time.",
    )
    amplitude_keys: tuple[AmplitudeKeys, ...] = _setting(
        _AmplitudeKeys(),
        default=(),
        help="Keys for Amplitude's API, to read its own record of each app's cohorts: "
        "comma-separated app_id:api_key:secret_key. Without them, Amplitude is not queried.",
    )
    amplitude_region: str = _setting(
        kinds.String(validate=validate.OneOf(["us", "eu"])),
        default="us",
        help="Region of the projects in AMPLITUDE_KEYS: us or eu.",
    )
    amplitude_url: str | None = _setting(
        kinds.String(
            validate=validate.Regexp(
                r"https?://[^/@?#\s]+(/[^@?#\s]*)?\Z",
                error="must be http:// or https:// with a host, and no user, query or fragment",
            )
        ),
        default=None,
        help="Address of Amplitude's API, in place of the region's.",
    )
    amplitude_target: str | None = _setting(
        kinds.String(validate=validate.Length(1, 512)),
        default=None,
        help="Name of this destination in Amplitude's record of syncs. Without it, a late sync "
        "to any destination makes its cohort late.",
    )
    amplitude_poll_minutes: int = _setting(
        _whole(1, 24 * 60), default=30, help="How often Amplitude's record is read."
    )
    amplitude_exports_per_month: int = _setting(
        _whole(0, 100_000),
        default=100,
        help="Exports per app and month that reconciling may use. Amplitude allows 500.",
    )
    sentry_dsn: str | None = _setting(
        kinds.String(
            validate=validate.Regexp(
                r"https?://[^@/\s]+@[^@\s]+/\d+\Z",
                error="must look like https://<key>@<host>/<number>",
            )
        ),
        default=None,
        help="DSN of the Sentry project that receives unexpected errors.",
        secret=True,
    )
    public_url: str | None = _setting(
        kinds.String(validate=_HTTP_URL),
        default=None,
        help="Where people reach the dashboard, for links in notifications.",
    )
    notify_url: str | None = _setting(
        kinds.String(validate=_HTTP_URL),
        default=None,
        help="Receives a POST when cohorts become incomplete or late, or recover, and when the "
        "store loses data.",
        secret=True,
    )
    notify_secret: str | None = _setting(
        kinds.String(
            validate=validate.Regexp(
                r"whsec_(?:[A-Za-z0-9+/]{4}){6,}(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?\Z",
                error="must be whsec_ followed by at least 24 characters of Base64",
            )
        ),
        default=None,
        help="Signs notifications as Standard Webhooks (standardwebhooks.com).",
        secret=True,
    )
    log_level: str = _setting(
        kinds.String(validate=validate.OneOf(["debug", "info", "warning", "error"])),
        default="info",
        help="Lowest level that is logged. debug also logs the messages of unexpected errors, "
        "which may quote what was sent.",
    )
    log_format: str = _setting(
        kinds.String(validate=validate.OneOf(["json", "text"])),
        default="json",
        help="json for programs, text for people: one short line per event. `make run` sets text, "
        "and commands always log text.",
    )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the settings from ``environ`` (the process's by default).

        A variable that is set but empty counts as not set.

        Raises:
            BadSettings: with one line for each setting that is wrong.
        """
        given = {k: v for k, v in (os.environ if environ is None else environ).items() if v}
        schema = Schema.from_dict({env_name(f): f.metadata["kind"] for f in fields(cls)})
        try:
            loaded = schema(unknown=EXCLUDE).load(given)
        except ValidationError as error:
            messages = error.normalized_messages()  # type: ignore[no-untyped-call]
            raise BadSettings(
                "\n".join(f"{name}: {' '.join(said)}" for name, said in sorted(messages.items()))
            ) from None
        settings = cls(**{name.lower(): value for name, value in loaded.items()})
        settings.check()
        return settings

    def check(self) -> None:
        """Check rules that involve several settings. Raises BadSettings."""
        if self.require_https and not self.proxy_hops:
            raise BadSettings(
                "REQUIRE_HTTPS: needs PROXY_HOPS of at least 1, the number of proxies in front. "
                "Without it every call looks like plain HTTP and would be refused."
            )
        seen = {self.metrics_token} if self.metrics_token else set()
        for name in ("api_keys", "read_api_keys", "admin_api_keys"):
            for entry in getattr(self, name):
                if entry.key in seen:
                    raise BadSettings(f"{name.upper()}: a key occurs twice; each may occur once")
                seen.add(entry.key)

    def warnings(self, environ: Mapping[str, str]) -> list[str]:
        """Probable mistakes in ``environ``, which these settings come from; a line each."""
        names = [env_name(f) for f in fields(self)]
        found = []
        for name in sorted(name for name, value in environ.items() if value):
            similar = get_close_matches(name.upper(), names, 1, _SIMILAR)
            if name not in names and similar:
                found.append(f"{name}: not a setting, so it is ignored. Did you mean {similar[0]}?")
        for setting in ("api_keys", "read_api_keys", "admin_api_keys"):
            for position, entry in enumerate(getattr(self, setting), 1):
                if len(entry.key) < MIN_KEY_LENGTH:
                    found.append(f"{setting.upper()}: the key of entry {position} {_SHORT}")
        if self.metrics_token and len(self.metrics_token) < MIN_KEY_LENGTH:
            found.append(f"METRICS_TOKEN: it {_SHORT}")
        most = max(1, self.store_connections - 1)
        if environ.get("APP_CONCURRENCY") and self.app_concurrency > most:
            found.append(
                f"APP_CONCURRENCY: {self.app_concurrency} has the effect of {most}, one less than "
                "STORE_CONNECTIONS."
            )
        return found

    def check_store(self) -> None:
        """Check what every command needs. Raises BadSettings."""
        if not self.redis_url:
            raise BadSettings(
                "REDIS_URL: not set. Set it to the address of a Redis or Valkey server, for "
                "example redis://localhost:6379/0; or use `make run` or `cohort-receiver run`, "
                "which bring their own store, at unix://$PWD/var/store.sock."
            )
        if "+sentinel://" in self.redis_url and not SENTINEL_URL.fullmatch(self.redis_url):
            raise BadSettings(
                "REDIS_URL: not a valid URL of Sentinels. It must look like "
                "redis+sentinel://user:password@host:26379,host:26379/service/0, with special "
                "characters in the password percent-encoded, as in %2F. If the Sentinels have a "
                "password of their own, append ?sentinel_password=…"
            )
        if not _can_be_read(self.redis_url):
            # Not the parser's own message: it quotes the password, which it takes for a port.
            raise BadSettings(
                "REDIS_URL: not a valid URL. It must look like "
                "redis://user:password@host:6379/0, with / # ? @ [ ] % in the password written as "
                "%2F %23 %3F %40 %5B %5D %25"
            )
        if "+sentinel://" not in self.redis_url and not _options_are_known(self.redis_url):
            raise BadSettings(
                f"REDIS_URL: the query may contain only {', '.join(_OPTIONS)} and, with rediss://, "
                f"{', '.join(_TLS_OPTIONS)}, with valid values"
            )
        if self.store_cluster and not _CLUSTER_URL.fullmatch(self.redis_url):
            raise BadSettings(
                "REDIS_URL: for a cluster it must be redis:// or rediss://, with database 0"
            )

    def check_service(self, stored_keys: Callable[[], bool] = lambda: False) -> None:
        """Check what the running service needs in addition. Raises BadSettings.

        Args:
            stored_keys: whether the store has a key that may send cohorts. Called only if the
                settings have none.
        """
        self.check_store()
        if not (self.api_keys or self.admin_api_keys or stored_keys()):
            raise BadSettings(
                "API_KEYS: no key is set, so nobody could send anything. Set it to app_id:key, "
                "with a long random key; or make a key with `cohort-receiver keys create`."
            )


def _can_be_read(url: str) -> bool:
    """Whether a store's URL is parsed as meant, with no unescaped character in its password."""
    if SENTINEL_URL.fullmatch(url):
        return True
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    if parts.scheme == "unix":
        return True
    if "@" in parts.path + parts.query + parts.fragment:
        return False
    return bool(_DATABASE.fullmatch(parts.path))


def _options_are_known(url: str) -> bool:
    """Whether the store's client accepts all options in the query of a URL."""
    known = {**_OPTIONS, **(_TLS_OPTIONS if url.startswith("rediss:") else {})}
    given = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    return all(re.fullmatch(known.get(name, "(?!)"), value) for name, value in given)


def env_name(f: Field[Any]) -> str:
    """The environment variable of a setting."""
    return f.name.upper()


def masked(settings: Settings) -> dict[str, str]:
    """The settings by name, as text without keys and passwords."""
    return {env_name(f): _masked(f, getattr(settings, f.name)) for f in fields(Settings)}


def _masked(f: Field[Any], value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{entry.app_id}:{_MASK}" for entry in value)
    if value is None:
        return "off" if isinstance(f.metadata["kind"], _Rate) else ""
    if f.name == "notify_url":
        # Slack and others keep the secret of a webhook in its path.
        return re.sub(r"(?<=[^:/])([/?]).+", rf"\1{_MASK}", value)
    if isinstance(value, str) and "://" in value:
        return _without_password(value)
    return _MASK if f.metadata["secret"] else _text(value)


def _without_password(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return _MASK
    userinfo, at, host = parts.netloc.rpartition("@")
    user, colon, _ = userinfo.partition(":")
    # A user name alone may be the secret, as in Sentry's DSNs.
    netloc = f"{user}:{_MASK}@{host}" if colon else f"{_MASK if at else ''}{at}{host}"
    query = re.sub(r"(^|&)([^=&]*pass[^=&]*)=[^&]*", rf"\1\2={_MASK}", parts.query)
    return f"{parts.scheme}://{netloc}{parts.path}{'?' if query else ''}{query}"


def store_address(url: str | None) -> str:
    """The host and port, or the socket, of a store's URL, without user and password."""
    hosts, path = store_location(url or "")
    return hosts or path


def store_location(url: str) -> tuple[str, str]:
    """The hosts and ports of a store's URL, and its path, without user, password and query."""
    found = _LOCATION.match(url)
    return (found[1], found[2]) if found else ("", "")


def reference() -> str:
    """The table of all settings, as Markdown."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for f in fields(Settings):
        rows.append(f"| `{env_name(f)}` | {_shown(f.default)} | {f.metadata['help']} |")
    return "\n".join(rows) + "\n"


def _shown(default: Any) -> str:
    if default is None or default == () or default is MISSING:
        return ""
    return f"`{_text(default)}`"


def _text(value: Any) -> str:
    """A value as it is written in the environment."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, RateLimitItem):
        every = "" if value.multiples == 1 else f"{value.multiples} "
        return f"{value.amount}/{every}{value.GRANULARITY.name}"
    return str(value)
