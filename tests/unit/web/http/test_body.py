"""Decoding of bodies."""

from __future__ import annotations

import pytest

from app.errors import InvalidJson
from app.settings import Settings
from app.web.http.body import _SCAN_BYTES, _has_more_values, _max_values, decoded

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
    '{"a": 1,234, "b": 5,678}',
    "1,234",
]
OTHERS = [
    '{"cohort_name": "the "best" users"}',
    '{"cohort_name": "the "1,000" best"}',
    '{"a": 1, 692}',
    '{"a": 12,34}',
    '{"a": "b" 1,234}',
    '{"a": "1,234',
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


@pytest.mark.parametrize(
    ("max_users", "max_values"), [(1, 160_000), (10_000, 160_000), (20_000, 320_000)]
)
def test_values__may_be_sixteen_for_each_user_of_the_largest_batch(
    max_users: int, max_values: int
) -> None:
    assert _max_values(Settings(max_batch_users=max_users)) == max_values


# Of these, each has as many values as the limit, and one more.
LIMIT = 3
LONG = "x" * _SCAN_BYTES


@pytest.mark.parametrize(
    ("text", "one_more"),
    [
        ("[1,2]", "[1,2,3]"),
        ('[",[{,[{",2]', '[",[{,[{",2,3]'),
        # Quotes and backslashes within strings.
        (r'["\\",2]', r'["\\",2,",",4]'),
        (r'["\\",",,,,"]', r'["\\",{},",,,,"]'),
        (r'["\"",",[1]"]', r'["\"",[1]]'),
        # Strings that go on in the next piece, and begin or end beside its border.
        (f'["{LONG},,,,,",2]', f'["{LONG},,,,,",2,3]'),
        (f'["{LONG}",",,{LONG},,"]', f'["{LONG}",",,{LONG},,",3]'),
        (f'["{LONG[2:]}",",,,,"]', f'["{LONG[2:]}",",,,,",3]'),
        (f'["{LONG[3:]}",",,,,"]', f'["{LONG[3:]}",",,,,",3]'),
    ],
    ids=lambda text: text[:20],
)
def test_values__are_counted_outside_of_strings(text: str, one_more: str) -> None:
    assert not _has_more_values(text.encode(), LIMIT - 1)
    assert _has_more_values(one_more.encode(), LIMIT - 1)
