"""The service in this process, on a real store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest
import redis
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient
from jinja2.bccache import Bucket, BytecodeCache
from werkzeug.routing import Rule

from app import create_app
from app.services import services
from app.settings import ApiKey, Settings
from app.store import Store, Tuning, connect
from tests.integration.described_replies import Replies

APP, KEY = "shop", "the-ingest-key"


_COMPILED = ("_parts", "_trace", "_converters", "arguments", "_build", "_build_unknown")


class RuleCompiledOnce(Rule):
    """A rule that shares what was compiled for an equal one: most of what an app costs."""

    _compiled: ClassVar[dict[tuple[object, ...], dict[str, object]]] = {}

    def compile(self) -> None:
        key = (self.rule, self.subdomain, repr(self.defaults))
        if key not in self._compiled:
            super().compile()
            self._compiled[key] = {name: getattr(self, name) for name in _COMPILED}
        vars(self).update(self._compiled[key])


Flask.url_rule_class = RuleCompiledOnce


class TemplatesCompiledOnce(BytecodeCache):
    """Compiled templates of the apps before: each app would compile those of its pages again."""

    _compiled: ClassVar[dict[str, bytes]] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if code := self._compiled.get(bucket.key):
            bucket.bytecode_from_string(code)

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._compiled[bucket.key] = bucket.bytecode_to_string()


Flask.jinja_options = {"bytecode_cache": TemplatesCompiledOnce()}

Run = Callable[..., Result]


@pytest.fixture
def make_app(store_url: str, redis_client: redis.Redis) -> Iterator[Callable[..., Flask]]:
    """Build the service on an empty store; keyword arguments are settings, and ``tuning``.

    At the end, every reply must have been as the API's description says.
    """
    replies = Replies()
    made: list[Flask] = []

    def make(tuning: Tuning | None = None, **changes: object) -> Flask:
        settings: dict[str, object] = {
            "redis_url": store_url,
            "api_keys": (ApiKey(APP, KEY),),
            "rate_limit": None,
            "auth_failure_rate_limit": None,
        }
        made.append(replies.watch(create_app(Settings(**{**settings, **changes}), tuning)))
        return made[-1]

    yield make
    for app in made:
        # Sockets that are left to the garbage collector fail whatever runs when it finds them.
        services(app).store._client.close()
    assert replies.complaints == []


@pytest.fixture
def client(make_app: Callable[..., Flask]) -> FlaskClient:
    """A caller with the ingest key."""
    return caller(make_app())


@pytest.fixture
def store(store_url: str, redis_client: redis.Redis) -> Iterator[Store]:
    with connect(Settings(redis_url=store_url)) as client:
        yield Store(client)


@pytest.fixture
def run(app: Flask) -> Run:
    """Run a command of the test's own service, given as words."""
    runner = app.test_cli_runner()

    def run(*words: str, input: str | None = None) -> Result:
        result = runner.invoke(args=words, input=input)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def caller(app: Flask, key: str = KEY) -> FlaskClient:
    client = app.test_client()
    client.environ_base["HTTP_API_KEY"] = key
    return client
