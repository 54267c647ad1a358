"""Runs the project's commands as an operator does."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.polling import DEADLINE
from tests.support.service import APP, KEY, ROOT

FLASK = (str(Path(sys.executable).with_name("flask")), "--app", "wsgi")


def environment(store_url: str | None) -> dict[str, str]:
    """What a command finds around it: the settings, and nothing of flask's own."""
    settings = {"REDIS_URL": store_url} if store_url else {}
    return {"PATH": os.environ.get("PATH", ""), "API_KEYS": f"{APP}:{KEY}", **settings}


def flask(
    store_url: str | None, *words: str, input: str | None = None, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a command; capital keyword arguments are further settings."""
    return subprocess.run(
        [*FLASK, *words],
        cwd=ROOT,
        env=environment(store_url) | settings,
        input=input,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )


def on_a_terminal(store_url: str, words: Sequence[str]) -> str:
    """Run a command with standard error on a terminal; returns what it showed there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*FLASK, *words],
        cwd=ROOT,
        env=environment(store_url) | {"TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:
        pass  # how Linux tells that the other side is closed
    finally:
        os.close(ours)
    assert process.wait(DEADLINE) == 0, shown
    return shown.decode()
