"""What the environment may say, and how a wrong value is told."""

from __future__ import annotations

import pytest

from app.settings import AmplitudeKeys, ApiKey, BadSettings, Settings, masked, store_address
from app.store import connect


def test_from_environ__nothing_set__gives_the_defaults() -> None:
    settings = Settings.from_environ({})
    assert settings == Settings()
    assert (settings.max_batch_users, settings.max_body_bytes) == (10_000, 8_388_608)
    assert str(settings.rate_limit) == "1000 per 1 second"


def test_from_environ__set_but_empty__counts_as_not_set() -> None:
    assert Settings.from_environ({"PORT": "", "API_KEYS": ""}) == Settings()


def test_from_environ__keys__belong_to_their_apps() -> None:
    settings = Settings.from_environ({"API_KEYS": "shop:k1, shop:k2,k3"})
    assert settings.api_keys == (
        ApiKey("shop", "k1"),
        ApiKey("shop", "k2"),
        ApiKey("default", "k3"),
    )


def test_from_environ__rate_limit_off__is_none() -> None:
    assert Settings.from_environ({"RATE_LIMIT": "off"}).rate_limit is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "API_KEYS",
            "shop:a:key",
            "entry 1: the key must not contain a colon, because Basic authentication ends the "
            "username there",
        ),
        (
            "REDIS_URL",
            "http://127.0.0.1",
            "must begin with redis://, rediss://, unix://, redis+sentinel:// or rediss+sentinel://",
        ),
        ("STORE_PARTITIONS", "two", "Not a valid integer."),
        ("REDIS_TLS_VERIFY", "no", "Not a valid boolean."),
        ("USER_POLICY", "closed", "Must be one of: open, known."),
    ],
)
def test_from_environ__wrong_value__says_what_is_expected(
    name: str, value: str, message: str
) -> None:
    with pytest.raises(BadSettings) as caught:
        Settings.from_environ({name: value})
    assert str(caught.value) == f"{name}: {message}"


@pytest.mark.parametrize("sign", "/#?[")
def test_check_store__password_with_a_sign_that_breaks_the_address__is_not_quoted(
    sign: str,
) -> None:
    url = f"redis://somebody:secret{sign}word@127.0.0.1:6379/0"
    with pytest.raises(BadSettings, match="REDIS_URL: not a valid URL") as caught:
        Settings(redis_url=url).check_store()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "rest",
    [
        "a:26379/name",
        "a,b,c/name/3",
        "user:p%2Fw@a:1,b:2/name/",
        ":password@[::1]:26379,b/name/0?sentinel_username=u&sentinel_password=p",
    ],
)
def test_check_store__address_of_sentinels__is_accepted(rest: str) -> None:
    for scheme in ("redis", "rediss"):
        Settings.from_environ({"REDIS_URL": f"{scheme}+sentinel://{rest}"}).check_store()


@pytest.mark.parametrize(
    "rest", ["a:26379", "a:26379/", "a:b/name", "a,/name", "u:s3/cret@a/name", "a/name/0?passwd=s3"]
)
def test_check_store__bad_address_of_sentinels__is_refused_without_quoting_it(rest: str) -> None:
    with pytest.raises(BadSettings, match="REDIS_URL: not a valid URL of Sentinels") as caught:
        Settings.from_environ({"REDIS_URL": f"redis+sentinel://{rest}"}).check_store()
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h/x",
        "redis://h/0/1",
        "redis://h?db=x",
        "redis://h/0?s3=1",
        "redis://h?ssl_certfile=/s3.pem",
        "rediss://h?ssl_cert_reqs=CERT_NONE",
        "redis://h?socket_timeout=s3",
        "unix://u:s3[x@/run/store.sock",
        "unix:///run/store.sock?timeout=s3",
    ],
)
def test_check_store__address_that_the_client_cannot_use__is_refused_without_quoting_it(
    url: str,
) -> None:
    with pytest.raises(BadSettings, match="REDIS_URL: ") as caught:
        Settings(redis_url=url).check_store()
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h:1/",
        "redis://h/15",
        "redis://h?db=2",
        "unix://u:p@/run/store.sock?db=1",
        "rediss://h/0?ssl_ca_certs=a&ssl_ca_path=b&ssl_certfile=c&ssl_keyfile=d"
        "&ssl_cert_reqs=none&ssl_check_hostname=false",
    ],
)
def test_check_store__address__is_one_that_the_client_can_use(url: str) -> None:
    settings = Settings(redis_url=url)
    settings.check_store()
    assert connect(settings).connection_pool.make_connection()


def test_check_store__sentinels_of_a_cluster__are_refused() -> None:
    with pytest.raises(BadSettings, match="REDIS_URL: for a cluster"):
        Settings(redis_url="redis+sentinel://a/name", store_cluster=True).check_store()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "eighty"),
        ("PORT", "70000"),
        ("WEB_CONCURRENCY", "0"),
        ("REDIS_URL", "localhost:6379"),
        ("REDIS_TLS_VERIFY", "yes"),
        ("REDIS_TLS_VERIFY", "1"),
        ("KEY_PREFIX", "a{b}"),
        ("KEY_PREFIX", "a\n"),
        ("STORE_PARTITIONS", "0"),
        ("USER_POLICY", "closed"),
        ("RATE_LIMIT", "many"),
        ("RATE_LIMIT", "1000/second;20000/minute"),
        ("API_KEYS", "bad app:key"),
        ("API_KEYS", "app:"),
        ("API_KEYS", "app:kéy"),
        ("API_KEYS", "app:a:key"),
        ("METRICS_TOKEN", "a token"),
        ("METRICS_TOKEN", "a:token"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_from_environ__wrong_value__is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(BadSettings, match=f"^{name}: "):
        Settings.from_environ({name: value})


def test_from_environ__several_wrong__names_each_on_its_line() -> None:
    with pytest.raises(BadSettings) as caught:
        Settings.from_environ({"PORT": "x", "USER_POLICY": "y"})
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "PORT",
        "USER_POLICY",
    ]


def test_from_environ__bad_key__is_not_shown() -> None:
    with pytest.raises(BadSettings) as caught:
        Settings.from_environ({"API_KEYS": "app:s3cret key"})
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(Settings.from_environ({"API_KEYS": "app:s3cret"}))


def test_from_environ__token_that_is_a_key_too__is_refused() -> None:
    with pytest.raises(BadSettings, match="API_KEYS: a key occurs twice"):
        Settings.from_environ({"API_KEYS": "a:k", "METRICS_TOKEN": "k"})


def test_from_environ__one_key_for_two_scopes__is_refused() -> None:
    with pytest.raises(BadSettings, match="READ_API_KEYS: a key occurs twice"):
        Settings.from_environ({"API_KEYS": "a:k", "READ_API_KEYS": "b:k"})


def test_from_environ__https_required_without_a_proxy__is_refused() -> None:
    with pytest.raises(BadSettings, match=r"REQUIRE_HTTPS: needs PROXY_HOPS"):
        Settings.from_environ({"REQUIRE_HTTPS": "true"})
    assert Settings.from_environ({"REQUIRE_HTTPS": "true", "PROXY_HOPS": "1"}).require_https


def test_from_environ__keep_alive__outlasts_herokus_router() -> None:
    assert Settings.from_environ({}).keep_alive_seconds > 90


@pytest.mark.parametrize(
    ("given", "name"),
    [({"API_KEYS": "k"}, "REDIS_URL"), ({"REDIS_URL": "redis://h"}, "API_KEYS")],
)
def test_check_service__what_it_can_not_do_without__is_asked_for(
    given: dict[str, str], name: str
) -> None:
    with pytest.raises(BadSettings, match=f"^{name}: "):
        Settings.from_environ(given).check_service()


def test_amplitude_keys__are_one_pair_for_each_app() -> None:
    given = {"AMPLITUDE_KEYS": "shop:key1:s3cret, blog:key2:s3cret2", "AMPLITUDE_REGION": "eu"}
    settings = Settings.from_environ(given)
    assert settings.amplitude_keys == (
        AmplitudeKeys("shop", "key1", "s3cret"),
        AmplitudeKeys("blog", "key2", "s3cret2"),
    )
    assert masked(settings)["AMPLITUDE_KEYS"] == "shop:***,blog:***"
    assert "s3cret" not in repr(settings)
    assert "key1" not in repr(settings)


@pytest.mark.parametrize(
    "value",
    [
        "s3cret",
        "shop:s3cret",
        "shop:k:s3cret:x",
        "shop::s3cret",
        "sh op:k:s3cret",
        "a:k:s,a:k:s3cret",
    ],
)
def test_amplitude_keys__malformed__are_refused_without_showing_them(value: str) -> None:
    with pytest.raises(BadSettings, match=r"^AMPLITUDE_KEYS: entry") as caught:
        Settings.from_environ({"AMPLITUDE_KEYS": value})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AMPLITUDE_REGION", "de"),
        ("AMPLITUDE_URL", "ftp://amplitude.com"),
        ("AMPLITUDE_URL", "https://user:pass@amplitude.com"),
        ("AMPLITUDE_URL", "https://amplitude.com/?key=1"),
        ("AMPLITUDE_URL", "amplitude.com"),
        ("AMPLITUDE_POLL_MINUTES", "0"),
        ("AMPLITUDE_EXPORTS_PER_MONTH", "-1"),
    ],
)
def test_amplitude_settings__that_are_wrong__are_refused(name: str, value: str) -> None:
    with pytest.raises(BadSettings, match=f"^{name}: "):
        Settings.from_environ({name: value})


@pytest.mark.parametrize(
    ("environ", "warnings"),
    [
        (
            {"REDIS_ULR": "x"},
            ["REDIS_ULR: not a setting, so it is ignored. Did you mean REDIS_URL?"],
        ),
        ({"API_KEY": "x"}, ["API_KEY: not a setting, so it is ignored. Did you mean API_KEYS?"]),
        (
            {"log_level": "x"},
            ["log_level: not a setting, so it is ignored. Did you mean LOG_LEVEL?"],
        ),
        ({"REDIS_ULR": ""}, []),
        # Of Heroku, Kubernetes, gunicorn and shells.
        (dict.fromkeys(("REDIS_TLS_URL", "REDIS_PORT", "HOST", "PATH", "DYNO", "PWD"), "x"), []),
        (
            {"API_KEYS": "a:0123456789abcdef,b:short", "METRICS_TOKEN": "tiny"},
            [
                "API_KEYS: the key of entry 2 has fewer than 16 characters, so it may be guessed.",
                "METRICS_TOKEN: it has fewer than 16 characters, so it may be guessed.",
            ],
        ),
        (
            {"APP_CONCURRENCY": "8", "STORE_CONNECTIONS": "4"},
            ["APP_CONCURRENCY: 8 has the effect of 3, one less than STORE_CONNECTIONS."],
        ),
        ({"APP_CONCURRENCY": "7"}, []),
        ({"STORE_CONNECTIONS": "1"}, []),
    ],
)
def test_warnings__name_probable_mistakes_and_quote_no_value(
    environ: dict[str, str], warnings: list[str]
) -> None:
    assert Settings.from_environ(environ).warnings(environ) == warnings


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://user:secret@host:6379/0?x=secret", "host:6379"),
        (
            "redis+sentinel://user:secret@[::1]:26379,b/name?sentinel_password=secret",
            "[::1]:26379,b",
        ),
        ("unix:///folder/socket", "/folder/socket"),
        (None, ""),
    ],
)
def test_store_address__of_every_kind__has_no_password(url: str | None, address: str) -> None:
    assert store_address(url) == address
