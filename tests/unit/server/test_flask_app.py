"""The application class matches URLs as Flask does, and relies on these internals of it."""

from __future__ import annotations

from inspect import iscoroutinefunction

import pytest
from flask import Flask
from werkzeug.routing import MapAdapter

from app import create_app
from app.server.flask_app import ServiceApp
from app.settings import ApiKey, Settings


@pytest.mark.parametrize("path", ["/lists/%C3%A9/add", "/healthz?x=%2F", "/a%2Fb", "/%FF", "/"])
def test_url_adapter__of_a_request__is_flasks(path: str) -> None:
    adapters = []
    for kind in (ServiceApp, Flask):
        app = kind(__name__)
        with app.test_request_context(path, base_url="https://example.com:8443/") as context:
            adapter: MapAdapter | None = app.create_url_adapter(context.request)
            assert adapter is not None
            adapters.append({name: getattr(adapter, name) for name in ADAPTER_ATTRIBUTES})
    assert adapters[0] == adapters[1]


ADAPTER_ATTRIBUTES = (
    *("server_name", "script_name", "subdomain", "url_scheme", "path_info"),
    *("default_method", "query_args", "websocket"),
)


def test_routes__every_one__is_what_the_class_assumes() -> None:
    app = create_app(Settings(redis_url="unix:///nowhere", api_keys=(ApiKey("a", "k"),)))
    assert not app.url_map.host_matching
    assert not app.subdomain_matching
    assert not [view for view in app.view_functions.values() if iscoroutinefunction(view)]
