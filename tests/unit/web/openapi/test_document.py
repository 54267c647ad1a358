"""The API's description: valid, whole, and with examples that are what they say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from app import create_app
from app.errors import NoCohortTraits, NotFound, Problem, SuppressedUser, UnsupportedType
from app.settings import ApiKey, Settings
from app.web.openapi import document

Operation = tuple[str, str, dict[str, Any]]


@pytest.fixture(scope="module")
def app() -> Flask:
    return create_app(Settings(redis_url="unix:///nowhere", api_keys=(ApiKey("a", "k"),)))


@pytest.fixture(scope="module")
def told(app: Flask) -> dict[str, Any]:
    return document(app)


def operations(told: dict[str, Any]) -> Iterator[Operation]:
    for path, item in told["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def resolved(told: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in node:
        _, kind, name = node["$ref"].rsplit("/", 2)
        return told["components"][kind][name]
    return node


def complaints(told: dict[str, Any], schema: dict[str, Any], value: Any) -> list[str]:
    whole = {**schema, "components": told["components"]}
    return [error.message for error in Draft202012Validator(whole).iter_errors(value)]


def examples(told: dict[str, Any], content: dict[str, Any]) -> list[Any]:
    if "example" in content:
        return [content["example"]]
    return [resolved(told, example)["value"] for example in content["examples"].values()]


def test_document__is_valid_openapi(told: dict[str, Any]) -> None:
    assert told["openapi"] == "3.1.0"
    assert list(OpenAPIV31SpecValidator(told).iter_errors()) == []


def parts(node: Any) -> Iterator[dict[str, Any]]:
    """All objects in a document. Examples are not schemas, but may look like some."""
    if isinstance(node, list):
        for item in node:
            yield from parts(item)
    elif isinstance(node, dict):
        yield node
        for name, value in node.items():
            if name not in ("example", "examples"):
                yield from parts(value)


# What Python, ECMA 262 and RE2 read alike.
PORTABLE = re.compile(
    r"(?: [^\\()?*+] | \\u[0-9a-fA-F]{4} | \\[dDwWsS^$.*+?()[\]{}|/\\-] | \((?!\?) | \(\?: | \)"
    r" | [?*+](?![?+]) )*",
    re.VERBOSE,
)


@pytest.mark.parametrize("pattern", [r"[0-9]+\Z", r"\Aa", "(?P<n>a)", "(?i)a", "a++"])
def test_portable_pattern__with_what_only_python_knows__is_none(pattern: str) -> None:
    assert not PORTABLE.fullmatch(pattern)


def test_document__patterns__mean_the_same_outside_python(told: dict[str, Any]) -> None:
    patterns = {part["pattern"] for part in parts(told) if isinstance(part.get("pattern"), str)}
    assert len(patterns) >= 3
    for pattern in patterns:
        assert PORTABLE.fullmatch(pattern), pattern
        assert (pattern[0], pattern[-1]) == ("^", "$"), pattern


def test_document__enums__have_one_type_and_each_value_once(told: dict[str, Any]) -> None:
    enums = [part["enum"] for part in parts(told) if isinstance(part.get("enum"), list)]
    assert len(enums) >= 8
    for enum in enums:
        assert all(isinstance(value, str) for value in enum), enum
        assert len(set(enum)) == len(enum), enum


def test_document__says_where_it_is_served_and_under_which_licence(told: dict[str, Any]) -> None:
    assert [server["url"] for server in told["servers"]] == ["/"]
    assert told["info"]["license"]["identifier"] == "MIT"


def test_document__every_call__is_there_with_its_own_name(app: Flask, told: dict[str, Any]) -> None:
    described = {(path, method) for path, method, _ in operations(told)}
    called = {
        (re.sub(r"<\w+:(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if hasattr(app.view_functions[rule.endpoint], "contract") and not rule.rule.endswith("/")
    }
    assert described == called
    names = [operation["operationId"] for _, _, operation in operations(told)]
    assert len(set(names)) == len(names)
    assert all(operation["summary"] for _, _, operation in operations(told))


def test_document__every_status__has_an_example_that_fits_its_schema(
    told: dict[str, Any],
) -> None:
    for path, method, operation in operations(told):
        for status, reply in operation["responses"].items():
            if status == "304":
                assert "content" not in reply
                continue
            (content,) = reply["content"].values()
            assert examples(told, content), (path, method, status)
            for example in examples(told, content):
                assert complaints(told, content["schema"], example) == [], (path, method, status)


def test_document__next_in_examples__is_a_cursor_of_the_call(app: Flask) -> None:
    views = [app.view_functions[rule.endpoint] for rule in app.url_map.iter_rules()]
    contracts = [view.contract for view in views if hasattr(view, "contract")]
    paged = [contract for contract in contracts if contract.paged]
    cursors = [
        (contract.query.fields["cursor"], contract.reply.fields["next"].metadata["example"])
        for contract in paged
    ]
    assert len([cursor for _, cursor in cursors if cursor]) >= 3
    for field, cursor in cursors:
        assert cursor is None or field.deserialize(cursor)


def test_document__every_body__has_an_example_that_is_taken(
    app: Flask, told: dict[str, Any]
) -> None:
    for path, method, operation in operations(told):
        if "requestBody" not in operation:
            continue
        content = operation["requestBody"]["content"].get("application/json")
        if content is None:
            continue  # a file; the tests of the call have examples
        (view,) = [
            view
            for name, view in app.view_functions.items()
            if name.endswith(f".{operation['operationId']}")
        ]
        found = examples(told, content)
        assert len(found) == len(view.contract.body)
        for example, schema in zip(found, view.contract.body, strict=True):
            assert complaints(told, content["schema"], example) == [], (path, method)
            assert schema.validate(example) == {}, (path, method)


def test_document__bodies_of_senders__require_what_the_calls_require(told: dict[str, Any]) -> None:
    required = {
        "Identify": ["traits", "type"],
        "Batch": ["batch"],
        "List": ["name"],
        "Webhook": ["cohort_id", "cohort_name", "in_cohort", "users"],
        "SegmentIdentify": ["type"],
        "TraitsInContext": ["context", "type"],
        "SegmentBatch": ["batch"],
    }
    schemas = told["components"]["schemas"]
    assert {name: sorted(schemas[name]["required"]) for name in required} == required


def test_document__every_parameter_with_an_example__fits_its_schema(
    told: dict[str, Any],
) -> None:
    for path, _, operation in operations(told):
        for parameter in operation["parameters"]:
            schema = parameter["schema"]
            for word in ("example", "default"):
                if word in schema:
                    assert complaints(told, schema, schema[word]) == [], (path, parameter["name"])


def test_document__every_problem__is_described_somewhere(told: dict[str, Any]) -> None:
    reasons = {example["value"]["reason"] for example in told["components"]["examples"].values()}
    # These are never a whole reply's, but of something in it that was left out.
    parts = {SuppressedUser.reason, UnsupportedType.reason, NoCohortTraits.reason}
    raised = {problem.reason for kind in Problem.__subclasses__() for problem in kind.examples()}
    assert reasons == raised - parts
    assert NotFound.reason in reasons


def test_document__its_words__are_for_callers_and_not_for_readers_of_the_code(
    told: dict[str, Any],
) -> None:
    text = json.dumps(told)
    for word in ("Args:", "Attributes:", "Raises:", "``"):
        assert word not in text
    values = [example["value"] for example in told["components"]["examples"].values()]
    details = {value["reason"]: value["detail"] for value in values}
    assert details["internal_error"] == "Internal error. It has been logged."
    assert details["store_error"] == "The store refused a command."


def test_document__every_call_with_a_key__can_be_refused(told: dict[str, Any]) -> None:
    for path, _, operation in operations(told):
        statuses = operation["responses"].keys()
        assert bool(operation["security"]) == ({"401", "403", "429"} <= statuses), path
        assert ("requestBody" in operation) == ({"408", "415"} <= statuses), path
        is_json = "application/json" in operation.get("requestBody", {}).get("content", ())
        assert is_json == ("413" in statuses), path  # a file may have any size
        assert "500" in statuses
        assert ("503" in statuses) == (path not in ("/healthz", "/version", "/metrics"))


def test_document__sizes__are_those_of_the_settings() -> None:
    keys = (ApiKey("a", "k"),)
    settings = Settings(
        redis_url="unix:///nowhere", api_keys=keys, max_batch_users=7, max_query_users=5
    )
    schemas = document(create_app(settings))["components"]["schemas"]
    assert schemas["Batch"]["properties"]["batch"]["maxItems"] == 7
    assert schemas["UsersQuery"]["properties"]["userIds"]["maxItems"] == 5
