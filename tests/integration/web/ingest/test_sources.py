"""The table of sources: everything that knows of sources knows all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import pytest
from flask import Blueprint, Flask
from flask.testing import FlaskClient

from app.auth.authenticate import INGEST
from app.services import services
from app.settings import ApiKey
from app.web import ingest
from app.web.ingest import SOURCES
from app.web.openapi import document
from tests.integration.conftest import APP, caller
from tests.integration.web import ingest as tests_of_sources
from tests.integration.web.ingest.contract import BatchContract, CohortContract

READ_KEY = "the-read-key"


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    return make_app(read_api_keys=(ApiKey(APP, READ_KEY),))


def send_invalid(app: Flask) -> list[str]:
    """Send an invalid body to each route of each source. Returns the sources' names."""
    http, names = caller(app), []
    for rule in app.url_map.iter_rules():
        name = rule.endpoint.partition(".")[0]
        if name in SOURCES and not rule.rule.endswith("/"):
            path = rule.rule.replace("<path:list_id>", "abc123")
            assert http.post(path, json={"batch": 1, "traits": 1}).status_code == 400, path
            names.append(name)
    assert set(names) == set(SOURCES)
    return names


def reading(app: Flask) -> FlaskClient:
    http = app.test_client()
    http.environ_base["HTTP_API_KEY"] = READ_KEY
    return http


def test_table__has_every_module_with_routes() -> None:
    modules = [import_module(f"{ingest.__name__}.{m.name}") for m in iter_modules(ingest.__path__)]
    found = {m.blueprint for m in modules if isinstance(getattr(m, "blueprint", None), Blueprint)}
    assert found == {source.blueprint for source in SOURCES.values()}


def test_routes__that_take_cohorts__are_those_of_the_sources(app: Flask) -> None:
    taking = {
        rule.endpoint.partition(".")[0]
        for rule in app.url_map.iter_rules()
        if getattr(app.view_functions[rule.endpoint], "scope", None) == INGEST
    }
    assert taking == set(SOURCES)


def test_metrics__label_requests_by_source(app: Flask) -> None:
    send_invalid(app)
    page = reading(app).get("/metrics").text
    for name in SOURCES:
        line = f'cohort_receiver_request_seconds_count{{source="{name}"}} '
        assert line in page, name


def test_log__names_the_source_of_a_refused_request(
    app: Flask, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = send_invalid(app)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    named = [event.get("source") for event in events if event.get("status") == 400]
    assert named == sent


def test_sync_history__names_the_source_of_a_refused_request(app: Flask) -> None:
    send_invalid(app)
    parts = services(app)
    parts.sync_recorder.flush()
    syncs = parts.store.sync_history.syncs(APP, limit=100).syncs
    assert {name for sync in syncs for name in sync.sources} == set(SOURCES)


def test_description__has_each_source_with_its_error_form(app: Flask) -> None:
    described = document(app)
    assert {tag["name"] for tag in described["tags"]} >= {s.title for s in SOURCES.values()}
    tags: dict[str, Any] = {}
    for path in described["paths"].values():
        for operation in path.values():
            if operation["security"] and [INGEST] in operation["security"][0].values():
                (tag,) = operation["tags"]
                content = operation["responses"]["400"]["content"]["application/problem+json"]
                tags[tag] = content["schema"]["$ref"].rpartition("/")[2]
    assert tags == {
        source.title: type(source.errors.schema).__name__ for source in SOURCES.values()
    }


def test_replies__to_a_refused_request__have_the_form_of_the_source(app: Flask) -> None:
    http = caller(app)
    for rule in app.url_map.iter_rules():
        source = SOURCES.get(rule.endpoint.partition(".")[0])
        if source:
            path = rule.rule.replace("<path:list_id>", "abc123")
            reply = http.post(path, json={"batch": 1, "traits": 1}).json
            assert reply.keys() == source.errors.schema.fields.keys(), path


def test_dashboard__shows_each_source_by_its_title(app: Flask) -> None:
    send_invalid(app)
    services(app).sync_recorder.flush()
    http = app.test_client()
    http.post("/login", data={"key": READ_KEY})
    page = http.get("/syncs?problems=true").text
    for source in SOURCES.values():
        assert source.title in page, source.name


def test_contract__is_tested_for_each_source() -> None:
    for module in iter_modules(tests_of_sources.__path__):
        import_module(f"{tests_of_sources.__name__}.{module.name}")
    contracts = {*CohortContract.__subclasses__(), *BatchContract.__subclasses__()}
    assert {contract.source for contract in contracts - {BatchContract}} == set(SOURCES)
