"""Holds each reply of the service in this process against the API's description."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from flask import Flask, Response, request
from jsonschema import Draft202012Validator

from app import create_app
from app.settings import ApiKey, Settings
from app.web.openapi import document


class Replies:
    """What was wrong with the replies of some services."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        told()  # before any threads of a test ask for it

    def watch(self, app: Flask) -> Flask:
        """Look at every reply of ``app`` to a call that is described."""

        @app.after_request
        def look(reply: Response) -> Response:
            rule = request.url_rule
            if rule is not None and hasattr(app.view_functions[rule.endpoint], "contract"):
                wrong = complaint(rule.rule, request.method, reply)
                self.complaints += [f"{request.method} {rule.rule}: {wrong}"] if wrong else []
            return reply

        return app


def complaint(rule: str, method: str, reply: Response) -> str | None:
    """What of a reply is not as it is described, if anything."""
    path = re.sub(r"<\w+:(\w+)>", r"{\1}", rule.rstrip("/"))
    operation = told()["paths"][path].get(method.lower())
    if operation is None:
        return None  # HEAD and OPTIONS, which Flask answers
    described = operation["responses"].get(str(reply.status_code))
    if described is None:
        return f"{reply.status_code} is not described"
    if "content" not in described:
        return None
    content = described["content"].get(reply.mimetype)
    if content is None:
        return f"{reply.mimetype} is not described"
    if reply.status_code >= 400 and reply.json["reason"] not in content["examples"]:
        return f"{reply.json['reason']} is not described"
    if reply.is_json:
        if not reply.data.endswith(b"}\n"):
            return "it does not end in a newline"
        for error in validator(path, method.lower(), str(reply.status_code)).iter_errors(
            reply.json
        ):
            return f"{error.json_path} {error.message}"
    return None


@cache
def told() -> dict[str, Any]:
    """The description. What it says of replies is the same for all settings."""
    settings = Settings(redis_url="unix:///nowhere", api_keys=(ApiKey("a", "k"),))
    return document(create_app(settings))


@cache
def validator(path: str, method: str, status: str) -> Draft202012Validator:
    """What checks the bodies of one kind of reply."""
    (content,) = told()["paths"][path][method]["responses"][status]["content"].values()
    return Draft202012Validator({**content["schema"], "components": told()["components"]})
