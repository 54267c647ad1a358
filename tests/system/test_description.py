"""The running service and its own description: schemathesis holds one against the other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.effort import THOROUGH, thorough
from tests.support.service import ADMIN_KEY, APP, ROOT, running
from tests.support.stores import running_store

CONFIG = Path(__file__).with_name("schemathesis.toml")


@thorough
def test_description__thousands_of_requests_made_from_it__are_answered_as_it_says(
    tmp_path: Path,
) -> None:
    with running_store() as store_url:
        env = {
            "REDIS_URL": store_url,
            "ADMIN_API_KEYS": f"{APP}:{ADMIN_KEY}",
            # the checks send bad keys, and more than any sender
            "RATE_LIMIT": "off",
            "AUTH_FAILURE_RATE_LIMIT": "off",
        }
        with running(env) as service:
            done = subprocess.run(
                [
                    *(Path(sys.executable).with_name("schemathesis"), "--no-color"),
                    *("--config-file", CONFIG, "run", f"{service.url}/openapi.json"),
                    *("--max-examples", "20" if THOROUGH else "4"),
                ],
                cwd=tmp_path,  # where it keeps what it learns
                env={
                    "PATH": os.environ["PATH"],
                    "PYTHONPATH": str(ROOT),
                    "KEY": ADMIN_KEY,
                    "APP": APP,
                },
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Failures:" not in done.stdout
        errors = [event for event in service.events() if event.get("level") == "error"]
        assert errors == []
