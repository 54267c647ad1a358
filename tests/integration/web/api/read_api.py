"""What the tests of reading calls share: a reader, and a check that replies keep their contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.cohorts import Cohort, MembershipChange
from app.services import services
from app.settings import ApiKey
from app.store import Store
from app.web.http.contract import JSON, Contract
from tests.integration.conftest import APP, caller
from tests.support.effort import PARTITIONS

READ_KEY, ADMIN_KEY, OTHER_KEY = "the-read-key", "the-admin-key", "another-apps-read-key"
KEYS: dict[str, Any] = {
    "read_api_keys": (ApiKey(APP, READ_KEY), ApiKey("other", OTHER_KEY)),
    "admin_api_keys": (ApiKey(APP, ADMIN_KEY),),
}


def say(
    store: Store, trait: str, member: bool, user_ids: Sequence[str], at_ms: int | None = None
) -> None:
    change = MembershipChange(Cohort.from_trait(trait), member, list(user_ids), at_ms)
    store.memberships.apply(APP, [change], source="test")


class Reader:
    """Calls with the read key. Every 200 is checked against what its view says it gives."""

    def __init__(self, app: Flask, key: str = READ_KEY) -> None:
        self._app = app
        self._http: FlaskClient = caller(app, key)

    def get(self, path: str, status: int = 200, **kwargs: Any) -> Any:
        return self.send("GET", path, status, **kwargs)

    def send(self, method: str, path: str, status: int = 200, **kwargs: Any) -> Any:
        reply = self._http.open(path, method=method, **kwargs)
        assert reply.status_code == status, reply.text
        if status >= 400:
            assert reply.content_type == "application/problem+json"
            return reply.json["reason"]
        if status == 200:
            # as sent, which is how routes are matched
            endpoint, _ = self._app.url_map.bind("x").match(path.partition("?")[0], method)
            contract: Contract = self._app.view_functions[endpoint].contract  # type: ignore
            assert reply.mimetype == contract.media_type
            assert contract.tagged == ("ETag" in reply.headers)
            assert contract.paged or "Link" not in reply.headers
            if contract.reply is not None and contract.media_type == JSON:
                assert contract.reply.validate(reply.json) == {}
        return reply

    def pages(self, path: str, name: str) -> list[list[Any]]:
        """All pages of a list, by its Link headers."""
        found = []
        following: str | None = path
        while following:
            reply = self._http.get(following)
            assert reply.status_code == 200, reply.text
            found.append(reply.json[name])
            link = reply.headers.get("Link")
            following = link and link.removeprefix("<").removesuffix('>; rel="next"')
            assert bool(following) == (reply.json["next"] is not None)
        return found


# For modules to take over as they are: `app, store = read_api.app, read_api.store`.
@pytest.fixture(params=PARTITIONS)
def app(request: pytest.FixtureRequest, make_app: Callable[..., Flask]) -> Flask:
    return make_app(store_partitions=request.param, **KEYS)


@pytest.fixture
def store(app: Flask) -> Store:
    store: Store = services(app).store
    return store


@pytest.fixture
def reader(app: Flask) -> Reader:
    return Reader(app)
