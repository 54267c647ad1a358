"""``cohort-receiver config`` shows what is in force, and no secret."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from click.testing import Result

from app import create_app
from app.services import EXTENSION, services
from app.settings import Settings, env_name, masked

SECRETS = (
    *("s3cret-key", "s3cret-read", "s3cret-admin", "s3cret-token", "s3cret-pass", "s3cret-dsn"),
    "s3cret-hook",
)
ENVIRON = {
    "REDIS_URL": "rediss://someone:s3cret-pass@store.example.com:6379/2?ssl_cert_reqs=none",
    "API_KEYS": "shop:s3cret-key,s3cret-key2",
    "READ_API_KEYS": "shop:s3cret-read",
    "ADMIN_API_KEYS": "s3cret-admin",
    "METRICS_TOKEN": "s3cret-token",
    "SENTRY_DSN": "https://s3cret-dsn@sentry.example.com/42",
    "NOTIFY_URL": "https://hooks.example.com/services/s3cret-hook",
    "RATE_LIMIT": "20 per 5 minute",
    "AUTH_FAILURE_RATE_LIMIT": "off",
    "REDIS_TLS_VERIFY": "false",
}


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> Result:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    app = create_app(Settings.from_environ(ENVIRON | {"SENTRY_DSN": ""}))
    settings = Settings.from_environ(ENVIRON)
    app.extensions[EXTENSION] = replace(services(app), settings=settings)
    result = app.test_cli_runner().invoke(args=["config", *words])
    assert result.exit_code == 0, result.output
    return result


def test_config__as_json__has_every_setting_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    output = run(monkeypatch, "--json").stdout
    shown = json.loads(output)
    assert shown.keys() == {env_name(field) for field in fields(Settings)}
    assert shown["REDIS_URL"] == "rediss://someone:***@store.example.com:6379/2?ssl_cert_reqs=none"
    assert shown["API_KEYS"] == "shop:***,default:***"
    assert shown["METRICS_TOKEN"] == "***"
    assert shown["SENTRY_DSN"] == "https://***@sentry.example.com/42"
    assert shown["NOTIFY_URL"] == "https://hooks.example.com/***"
    assert shown["RATE_LIMIT"] == "20/5 minute"
    assert shown["AUTH_FAILURE_RATE_LIMIT"] == "off"
    assert shown["REDIS_TLS_VERIFY"] == "false"
    assert not [secret for secret in SECRETS if secret in output]


def test_config__as_a_table__shows_what_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    output = run(monkeypatch).stdout
    rows = {line.split()[0]: line.split() for line in output.splitlines()}
    assert rows["REDIS_TLS_VERIFY"][1:] == ["false", "environment"]
    assert rows["MAX_BATCH_USERS"][1:] == ["10000", "default"]
    assert not [secret for secret in SECRETS if secret in output]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost", "redis://localhost"),
        ("redis://:p4ss@localhost:1/0", "redis://:***@localhost:1/0"),
        ("redis://u:p4ss:w@rd@localhost", "redis://u:***@localhost"),
        ("redis://localhost?username=u&password=p4ss", "redis://localhost?username=u&password=***"),
        ("unix://u:p4ss@/run/store.sock?db=1", "unix://u:***@/run/store.sock?db=1"),
        ("unix:///run/store.sock", "unix:///run/store.sock"),
        ("redis://p4ss@localhost", "redis://***@localhost"),
    ],
)
def test_masked__address_of_the_store__hides_its_password(url: str, shown: str) -> None:
    settings = Settings(redis_url=url)
    assert masked(settings)["REDIS_URL"] == shown
    assert "p4ss" not in repr(settings)


def test_masked__of_what_was_shown__is_what_would_be_read() -> None:
    shown = masked(Settings(redis_url="redis://localhost"))
    assert Settings.from_environ(shown) == Settings(redis_url="redis://localhost")


@pytest.mark.parametrize(
    "dsn", ["sentry.example.com", "https://sentry.example.com/1", "https://k@h/"]
)
def test_from_environ__sentry_dsn_that_is_none__is_refused(dsn: str) -> None:
    with pytest.raises(Exception, match=r"^SENTRY_DSN: must look like"):
        Settings.from_environ({"SENTRY_DSN": dsn})


@pytest.mark.parametrize("scheme", ["redis+sentinel", "rediss+sentinel"])
def test_masked__sentinels__hides_both_passwords(scheme: str) -> None:
    settings = Settings(
        redis_url=f"{scheme}://u:s3cret@a:1,b:2/name/0?sentinel_username=w&sentinel_password=s3cret"
    )
    assert masked(settings)["REDIS_URL"] == (
        f"{scheme}://u:***@a:1,b:2/name/0?sentinel_username=w&sentinel_password=***"
    )


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://hooks.example.com", "https://hooks.example.com"),
        ("https://hooks.example.com/", "https://hooks.example.com/"),
        ("http://hooks:8080?token=s3cret", "http://hooks:8080?***"),
        ("http://[::1]:8080/s3cret?token=s3cret", "http://[::1]:8080/***"),
    ],
)
def test_masked__address_of_notifications__hides_its_path_and_query(url: str, shown: str) -> None:
    assert masked(Settings.from_environ({"NOTIFY_URL": url}))["NOTIFY_URL"] == shown
