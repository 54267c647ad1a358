"""How much the tests try: enough to notice most mistakes, or all they can."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

import pytest

Case = TypeVar("Case")

THOROUGH = os.environ.get("TEST_EFFORT") == "thorough"

NOT_THOROUGH = "for TEST_EFFORT=thorough"
thorough = pytest.mark.skipif(not THOROUGH, reason=NOT_THOROUGH)

_ONE, _THREE = pytest.param(1, id="one partition"), pytest.param(3, id="three partitions")
# What holds with three partitions mostly does with one, which most tests have.
PARTITIONS = [_ONE, _THREE] if THOROUGH else [_THREE]


def some(cases: Iterable[Case]) -> list[Case]:
    """All of many cases that differ little, if thorough; otherwise every third."""
    return [*cases][:: 1 if THOROUGH else 3]
