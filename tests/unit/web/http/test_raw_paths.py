"""The path that routes are matched on, with and without a server that provides the raw one."""

from __future__ import annotations

from typing import Any

import pytest

from app.web.http.raw_paths import RawPath


def matched(**environ: str) -> str:
    """The path that the application gets."""
    seen: list[str] = []

    def application(environ: dict[str, Any], start_response: object) -> list[bytes]:
        seen.append(environ["PATH_INFO"])
        return []

    RawPath(application)(environ, lambda *_: None)
    return seen[0]


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("/users/a%2Fb", "/users/a%2Fb"),
        ("/users/a%2fb?x=%2F", "/users/a%2fb"),
        ("/users/100%25", "/users/100%25"),
        # Bytes that a sender did not encode, as the server decodes them.
        ("/users/\xc3\xa9", "/users/%C3%A9"),
        ("/users/a%20\xc3\xa9?\xc3", "/users/a%20%C3%A9"),
        # Nothing is encoded: the path is the same in either form.
        ("/users/ann", "/decoded"),
        # Not a path, as of OPTIONS or a proxy's request.
        ("*", "/decoded"),
        ("http://host/a%2Fb", "/decoded"),
    ],
)
def test_raw_path__of_the_server__is_matched_as_sent(raw: str, path: str) -> None:
    assert matched(RAW_URI=raw, PATH_INFO="/decoded") == path


def test_raw_path__below_a_script_name__is_without_it() -> None:
    assert matched(RAW_URI="/app/a%2Fb", SCRIPT_NAME="/app", PATH_INFO="/a/b") == "/a%2Fb"


@pytest.mark.parametrize(("path", "expected"), [("/a/b", "/a/b"), ("/100%", "/100%25")])
def test_path__without_a_raw_one__is_matched_as_if_it_was_encoded(path: str, expected: str) -> None:
    assert matched(PATH_INFO=path) == expected
