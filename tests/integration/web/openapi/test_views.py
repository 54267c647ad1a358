"""The page that shows the API's description, and its files."""

from __future__ import annotations

import re
from collections.abc import Callable

from flask import Flask


def test_page__without_a_key__brings_all_that_it_needs(make_app: Callable[..., Flask]) -> None:
    http = make_app().test_client()
    page = http.get("/docs", buffered=True)
    assert (page.status_code, page.mimetype) == (200, "text/html")
    named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {"docs/page.js", "docs/page.css"} <= {*named}
    for name in named:
        assert http.get(f"/{name}", buffered=True).status_code == 200, name
    assert (
        'new URL("openapi.json", document.baseURI)' in http.get("/docs/page.js", buffered=True).text
    )


def test_page__policy__lets_nothing_in_from_elsewhere(make_app: Callable[..., Flask]) -> None:
    http = make_app().test_client()
    page = http.get("/docs", buffered=True)
    assert "//" not in re.sub(r"<!doctype html>", "", page.text)
    assert re.search(r"<script(?! src)|<style| style=| on\w+=", page.text) is None
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe-eval" not in policy


def test_page__with_a_slash__is_where_its_files_are(make_app: Callable[..., Flask]) -> None:
    reply = make_app().test_client().get("/docs/", buffered=True)
    assert (reply.status_code, reply.headers["Location"]) == (302, "/docs")


def test_files__others_of_the_folders__are_not_given_out(make_app: Callable[..., Flask]) -> None:
    http = make_app().test_client()
    for name in ("views.py", "index.css", "..%2Fviews.py", "document.py"):
        assert http.get(f"/docs/{name}", buffered=True).status_code == 404, name


def test_document__over_http__needs_no_key(make_app: Callable[..., Flask]) -> None:
    reply = make_app().test_client().get("/openapi.json", buffered=True)
    assert (reply.status_code, reply.mimetype) == (200, "application/json")
    assert reply.json["openapi"] == "3.1.0"
