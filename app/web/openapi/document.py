"""The OpenAPI 3.1 document, generated from routes, contracts, schemas, docstrings and errors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.common import resolve_schema_cls, resolve_schema_instance
from flask import Flask
from marshmallow import Schema, fields
from werkzeug.routing import Rule

from app import __version__
from app.auth.authenticate import PUBLIC
from app.auth.keyring import NEEDED
from app.errors import (
    InternalError,
    NotFound,
    Problem,
    StoreUnavailable,
)
from app.services import services
from app.web.http.contract import IN_PATH, JSON, Contract
from app.web.http.fields import Items, limited
from app.web.http.problems import possible_problems
from app.web.ingest import SOURCES
from app.web.ingest.replies import PROBLEM_DOCUMENT, ErrorForm

PROBLEM_JSON = "application/problem+json"

_ABOUT = """\
Receives Amplitude's behavioural cohorts, keeps each user's cohort traits in Redis, and serves
them to readers.

- Every reply has an `X-Request-ID`, either the one from the request or a new one.
- Paths work with and without a trailing slash. Ids in paths must be percent-encoded.
- Bodies may be sent with `Content-Encoding: gzip`. Unknown fields and parameters are ignored.
- Times are in ms since the epoch. User ids have at most 1,024 bytes of UTF-8, trait names 512; the
  schemas give these limits in characters.
- Errors are problem documents (RFC 9457), distinguished by `reason`, even for malformed HTTP.
  Unknown paths are a 404 `not_found`, wrong methods a 405 `method_not_allowed`.
"""

# The headings of blueprints, in the order of the document.
_TAGS = {
    **{name: (source.title, source.description) for name, source in SOURCES.items()},
    "users": ("Users and members", "Who is in which cohort."),
    "cohorts": ("Cohorts", "Cohorts, their freshness and their cadence."),
    "export": ("Exports", "A whole cohort in one stream."),
    "changes": ("Changes", "Who entered and left, as it happens."),
    "syncs": ("Sync history", "The outcome of each request, and cohort sizes over time."),
    "resyncs": ("Resyncs and imports", "Replace the members of a cohort."),
    "reconcile": ("Reconcile", "Compare a cohort with Amplitude's own record."),
    "upstream": ("Upstream", "The polls of Amplitude's own record."),
    "admin": ("Administration", "Delete cohorts; erase and register users."),
    "health": ("Health", "Liveness and readiness."),
    "metrics": ("Metrics", "For Prometheus."),
}

_SECURITY_SCHEMES = {
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "The key as the username. The password is ignored.",
    },
    "bearer": {"type": "http", "scheme": "bearer", "description": "The key as the token."},
    "api_key": {"type": "apiKey", "in": "header", "name": "api_key", "description": "The key."},
    "app_id": {
        "type": "apiKey",
        "in": "header",
        "name": "app_id",
        "description": "The app that the key belongs to. Optional, in addition to the key.",
    },
}
# Alternative ways to send a key.
_SECURITY = (("basic",), ("bearer",), ("api_key",), ("api_key", "app_id"))

# These have the same form for all calls.
_WITHOUT_MEMBERS = (StoreUnavailable, NotFound)

_REQUEST_ID = "9f0c2d6e5b8a4c719f0c2d6e5b8a4c71"
_HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-ID": {"description": "The request's id.", "schema": {"type": "string"}},
    "Retry-After": {
        "description": "Seconds to wait before a retry.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {"description": "How to authenticate.", "schema": {"type": "string"}},
    "ETag": {"description": "For `If-None-Match`.", "schema": {"type": "string"}},
    "Link": {
        "description": 'The next page, `rel="next"` (RFC 8288). Missing on the last page.',
        "schema": {"type": "string"},
    },
}
_OF_STATUS = {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}


class _Schemas(MarshmallowPlugin):
    """Convert marshmallow schemas, including docstrings and the ``json_schema`` of fields."""

    def __init__(self) -> None:
        super().__init__(schema_name_resolver=_name)

    def init_spec(self, spec: APISpec) -> None:
        super().init_spec(spec)
        converter: Any = self.converter
        converter.add_attribute_function(_own_schema)

    # The signature is that of the base class.
    def schema_helper(self, name: Any, _: Any, schema: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        made = super().schema_helper(name, _, schema=schema, **kwargs)  # type: ignore[no-untyped-call]
        if made is not None:
            cls = resolve_schema_cls(schema)
            made |= {"description": _words(cls.__doc__)} | getattr(cls, "json_schema", {})
        return made


def _name(schema: Any) -> str:
    instance = resolve_schema_instance(schema)
    name = type(instance).__name__.removesuffix("Schema").lstrip("_")
    return f"{name}Call" if instance.partial else name


def _own_schema(converter: Any, field: fields.Field[Any], ret: dict[str, Any]) -> dict[str, Any]:
    """The ``json_schema`` of a field; metadata of the field takes precedence."""
    described: dict[str, Any] = field.json_schema() if hasattr(field, "json_schema") else {}
    if isinstance(field, Items):
        described = _array(converter, field)
    if field.allow_none and isinstance(described.get("type"), str):
        described["type"] = [described["type"], "null"]
    if field.allow_none and "anyOf" in described:
        described["anyOf"] = [*described["anyOf"], {"type": "null"}]
    if field.allow_none and "enum" in ret:
        # For an enum of several types, client generators make one class for each type.
        choices = [choice for choice in ret.pop("enum") if choice is not None]
        kind = next(kind for kind in ret.pop("type") if kind != "null")
        described["anyOf"] = [{"type": kind, "enum": choices}, {"type": "null"}]
    return {name: value for name, value in described.items() if name not in ret}


def _array(converter: Any, field: Items[Any]) -> dict[str, Any]:
    most = {} if field.max_users is None else {"maxItems": field.max_users}
    item = field.item
    if isinstance(item, fields.Field):
        return {"type": "array", "items": converter.field2property(item), **most}
    kinds = [item] if isinstance(item, Schema) else item
    return {"type": "array", "items": _any_of(converter, kinds), **most}


def _any_of(converter: Any, schemas: Iterable[Schema]) -> dict[str, Any]:
    kinds = [converter.resolve_nested_schema(schema) for schema in schemas]
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def document(app: Flask) -> dict[str, Any]:
    """The OpenAPI document of an app."""
    return _Document(app).made()


class _Document:
    def __init__(self, app: Flask) -> None:
        self._app = app
        self._settings = services(app).settings
        plugin = _Schemas()
        self._spec = APISpec(
            title="Cohort Receiver",
            version=__version__,
            openapi_version="3.1.0",
            info={"description": _ABOUT, "license": {"name": "MIT", "identifier": "MIT"}},
            servers=[{"url": "/", "description": "The service that serves this description."}],
            plugins=[plugin],
            tags=[{"name": name, "description": words} for name, words in _TAGS.values()],
        )
        self._converter: Any = plugin.converter
        for name, scheme in _SECURITY_SCHEMES.items():
            self._spec.components.security_scheme(name, scheme)
        for name, header in _HEADERS.items():
            self._spec.components.header(name, header)
        self._examples: dict[str, Any] = {}

    def made(self) -> dict[str, Any]:
        order = list(_TAGS)
        rules = [rule for rule in self._app.url_map.iter_rules() if self._contract(rule)]
        for rule in sorted(rules, key=lambda rule: order.index(rule.endpoint.partition(".")[0])):
            # Rules for trailing slashes are not listed.
            if not rule.rule.endswith("/"):
                path = re.sub(r"<\w+:(\w+)>", r"{\1}", rule.rule)
                self._spec.path(path=path, operations=dict(self._operations(rule)))
        return self._spec.to_dict()

    def _contract(self, rule: Rule) -> Contract | None:
        return getattr(self._app.view_functions[rule.endpoint], "contract", None)

    def _operations(self, rule: Rule) -> Iterator[tuple[str, dict[str, Any]]]:
        view: Any = self._app.view_functions[rule.endpoint]
        contract: Contract = view.contract
        blueprint, _, name = rule.endpoint.rpartition(".")
        summary, *more = re.split(r"(?<=\.)\s+", _words(view.__doc__), maxsplit=1)
        scope: str = view.scope
        needs = "Public." if scope == PUBLIC else f"Requires a key with {NEEDED[scope]}."
        operation: dict[str, Any] = {
            "operationId": name,
            "tags": [_TAGS[blueprint][0]],
            "summary": summary.removesuffix("."),
            "description": "\n\n".join(part for part in (*more, needs)),
            "parameters": [*self._parameters(rule, contract)],
            "security": [],
            "responses": self._responses(rule, contract, scope),
        }
        if scope != PUBLIC:
            operation["security"] = [{part: [scope] for part in way} for way in _SECURITY]
        if contract.body:
            operation["requestBody"] = self._body(contract)
        elif contract.upload:
            content = {
                media_type: {"schema": {"type": "string"}, "example": example}
                for media_type, example in contract.upload.items()
            }
            operation["requestBody"] = {"required": True, "content": content}
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            yield method.lower(), operation

    def _parameters(self, rule: Rule, contract: Contract) -> Iterator[dict[str, Any]]:
        for name in sorted(rule.arguments, key=rule.rule.index):
            parameter = self._converter._field2parameter(IN_PATH[name], name=name, location="path")
            yield {**parameter, "required": True}
        for schema, location in ((contract.query, "query"), (contract.headers, "header")):
            if schema is not None:
                yield from self._converter.schema2parameters(schema, location=location)
        if contract.tagged:
            yield {
                "name": "If-None-Match",
                "in": "header",
                "description": "The `ETag` of the caller's version; 304 if it is current.",
                "schema": {"type": "string"},
            }

    def _body(self, contract: Contract) -> dict[str, Any]:
        most = getattr(self._settings, contract.user_limit)
        schemas = [
            schema if schema.partial else limited(type(schema), most) for schema in contract.body
        ]
        kinds = [self._converter.resolve_nested_schema(schema) for schema in schemas]
        for place, kind in enumerate(kinds):
            if others := [{"required": [member]} for member in contract.discriminators[:place]]:
                kind["not"] = others[0] if len(others) == 1 else {"anyOf": others}
        body = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        examples = {
            _name(schema): {"value": self._example(self._converter.resolve_nested_schema(schema))}
            for schema in schemas
        }
        return {"required": True, "content": {JSON: {"schema": body, "examples": examples}}}

    def _responses(self, rule: Rule, contract: Contract, scope: str) -> dict[str, Any]:
        headers = ["X-Request-ID"]
        headers += ["ETag"] if contract.tagged else []
        responses: dict[str, Any] = {
            str(contract.status): {
                "description": "Done."
                if contract.reply is None
                else _words(contract.reply.__doc__),
                "content": {contract.media_type: self._content(contract)},
                "headers": _header_refs([*headers, *(["Link"] if contract.paged else [])]),
            }
        }
        if contract.tagged:
            described = "The caller's version is current."
            responses["304"] = {"description": described, "headers": _header_refs(headers)}
        by_status: dict[int, list[Problem]] = {}
        for problem in possible_problems(rule, contract, scope):
            by_status.setdefault(problem.status, []).append(problem)
        errors = _error_form(rule)
        for status, problems in sorted(by_status.items()):
            responses[str(status)] = self._refusal(errors, status, problems)
        return responses

    def _content(self, contract: Contract) -> dict[str, Any]:
        if contract.reply is None:
            return {"schema": {"type": "string"}, "example": contract.example}
        schema = self._converter.resolve_nested_schema(contract.reply)
        return {"schema": schema, "example": self._example(schema)}

    def _refusal(self, errors: ErrorForm, status: int, problems: list[Problem]) -> dict[str, Any]:
        kind = _name(errors.schema)
        examples = {}
        for problem in problems:
            members = {}
            if type(problem) is not InternalError and not isinstance(problem, _WITHOUT_MEMBERS):
                members = errors.members(problem)
            name = f"{kind}.{problem.reason}"
            if name not in self._examples:
                described = problem.document(_REQUEST_ID, **members)
                self._examples[name] = {"summary": type(problem).detail, "value": described}
                self._spec.components.example(name, self._examples[name])
            examples[problem.reason] = {"$ref": f"#/components/examples/{name}"}
        schema = self._converter.resolve_nested_schema(errors.schema)
        headers = ["X-Request-ID", *([_OF_STATUS[status]] if status in _OF_STATUS else [])]
        return {
            "description": "\n".join(
                f"- `{p.reason}`: {p.document('')['detail']}" for p in problems
            ),
            "content": {PROBLEM_JSON: {"schema": schema, "examples": examples}},
            "headers": _header_refs(headers),
        }

    def _example(self, schema: dict[str, Any]) -> Any:
        """An example for a schema, composed of the examples of its parts.

        Raises:
            LookupError: a part has no example.
        """
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            schema = self._spec.components.schemas[name]
        if "example" in schema:
            return schema["example"]
        if "anyOf" in schema:
            return self._example(schema["anyOf"][0])
        if schema.get("type") == "object":
            parts = schema["properties"].items()
            needed = schema.get("required", ())
            return {
                name: self._example(part)
                for name, part in parts
                if name in needed or "example" in part
            }
        if schema.get("type") == "array":
            return [self._example(schema["items"])]
        raise LookupError(f"no example for {schema}")


def _error_form(rule: Rule) -> ErrorForm:
    source = SOURCES.get(rule.endpoint.partition(".")[0])
    return source.errors if source else PROBLEM_DOCUMENT


def _header_refs(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _words(docstring: str | None) -> str:
    """A docstring as Markdown, without the sections for Python developers."""
    text = re.sub(r"``([^`]+)``", r"`\1`", re.sub(r"\n {4,}", "\n", docstring or "").strip())
    text = re.split(r"\n\n(?:Args|Raises|Returns|Attributes):|\s*Loads to ", text)[0]
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text).strip()
