"""Decoding of bodies."""

from __future__ import annotations

import pytest

from app.errors import InvalidJson
from app.web.http.body import decoded

SEPARATED = [
    '{"computed_time": 1,692,206,763, "b": 1}',
    '{"b": 1, "computed_time":1,692,206,763}',
    '{"users": [{"user_id": 1,234}]}',
    '{"a": 1.692.206.763}',
    '{"a": 1 692 206}',
    '{"a": 1\u00a0692}',
    '{"a": 1\u202f692}',
    '{"a": 1\'692}',
    '{"a": -12,345\n}',
    '{"é🎉": "é🎉", "a": 1,234.5}',
]
OTHERS = [
    '{"cohort_name": "the "best" users"}',
    '{"cohort_name": "the "1,000" best"}',
    '{"a": 1, 692}',
    '{"a": 12,34}',
    "{'a': 1}",
    "",
]


@pytest.mark.parametrize("text", SEPARATED)
def test_number__with_thousands_separators__is_named_as_the_cause(text: str) -> None:
    with pytest.raises(InvalidJson) as caught:
        decoded(text.encode())
    assert "thousands separators" in caught.value.detail
    assert "?c" in caught.value.detail


@pytest.mark.parametrize("text", OTHERS)
def test_error__of_another_cause__does_not_mention_them(text: str) -> None:
    with pytest.raises(InvalidJson) as caught:
        decoded(text.encode())
    assert "thousands" not in caught.value.detail


def test_error__in_a_long_run_of_digits__is_short_and_quick() -> None:
    with pytest.raises(InvalidJson) as caught:
        decoded(b'{"a": ' + b"123," * 1_000_000 + b"}")
    assert len(caught.value.detail) < 250
