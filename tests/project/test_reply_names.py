"""Members of JSON replies are in camelCase."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from app import create_app
from app.settings import ApiKey, Settings
from app.web.openapi import document

# Amplitude may look for the id of a list under this name.
DEFINED_BY_SENDERS = {"list_id"}
CAMEL_CASE = re.compile(r"[a-z][a-zA-Z0-9]*")


def members(components: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    """The names of all members that a schema declares, at any depth."""
    if "$ref" in schema:
        schema = components["schemas"][schema["$ref"].rpartition("/")[2]]
    for name, part in schema.get("properties", {}).items():
        yield name
        yield from members(components, part)
    for part in [*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())]:
        yield from members(components, part)


def test_replies__each_member__is_in_camel_case() -> None:
    app = create_app(Settings(redis_url="unix:///nowhere", api_keys=(ApiKey("a", "k"),)))
    told = document(app)
    found = set()
    for path in told["paths"].values():
        for operation in path.values():
            for response in operation["responses"].values():
                for media_type, content in response.get("content", {}).items():
                    found |= set(members(told["components"], content["schema"]))
                    if media_type.endswith("ndjson"):
                        found |= set(json.loads(content["example"]))
    assert {"requestId", "storeMs", "streamEntriesKept", "cohortId", "code", "since"} <= found
    assert {name for name in found if not CAMEL_CASE.fullmatch(name)} == DEFINED_BY_SENDERS
