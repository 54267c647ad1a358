"""Which bodies are decoded whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask

from app.web.http.body import is_small

BYTES, VALUES = 170_000, 160_000


@pytest.mark.parametrize(
    ("body", "small"),
    [
        (b" " * BYTES, True),
        (b" " * (BYTES + 1), False),
        (b"," * VALUES, True),
        (b"," * (VALUES + 1), False),
    ],
    ids=["bytes", "a byte more", "values", "a value more"],
)
def test_body__is_small_within_both_limits(
    make_app: Callable[..., Flask], body: bytes, small: bool
) -> None:
    with make_app(max_body_bytes=BYTES).app_context():
        assert is_small(body) is small
