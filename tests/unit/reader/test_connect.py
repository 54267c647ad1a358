"""Options of the reader's connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cohort_reader import connect, connect_async


@pytest.mark.parametrize("connect_to", [connect, connect_async])
@pytest.mark.parametrize("url", ["redis://host", "redis+sentinel://host/name"])
def test_connect__option_that_timeout_seconds_sets__is_refused(
    connect_to: Callable[..., Any], url: str
) -> None:
    with pytest.raises(TypeError, match="socket_timeout"):
        connect_to(url, socket_timeout=5)
