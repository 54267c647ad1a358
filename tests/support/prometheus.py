"""A real Prometheus that scrapes a running service every second."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import urllib3

from tests.support.service import ROOT, Service
from tests.support.stores import reserved_ports

TOKEN = "TEST_METRICS_TOKEN"
RULES = ROOT / "ops" / "alerts.yml"

# Where Prometheus listens, as it can't tell which port it was given.
_CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
scrape_configs:
  - job_name: cohort-receiver
    authorization: {{credentials: {token}}}
    static_configs: [{{targets: ["{target}"]}}]
rule_files: ["{rules}"]
"""


class Prometheus:
    """What a running Prometheus knows."""

    def __init__(self, address: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self._address, self._process, self._log = address, process, log
        self._http = urllib3.PoolManager(retries=False, timeout=10)

    def ask(self, path: str) -> Any:
        """The data of a reply of its API; {} if there is none."""
        assert self._process.poll() is None, self._log.read_text()
        try:
            reply = self._http.request("GET", f"http://{self._address}/api/v1/{path}")
        except urllib3.exceptions.HTTPError:
            return {}  # it does not listen yet
        return json.loads(reply.data).get("data", {}) if reply.status == 200 else {}

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives."""
        found: list[dict[str, Any]] = self.ask(f"query?query={quote(expression)}").get("result", [])
        return found

    def value(self, expression: str) -> float | None:
        """The value of the first series; None if there is none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else None

    def alerts(self, state: str = "firing") -> set[str]:
        """The names of the alerts in a state."""
        found = self.query(f'ALERTS{{alertstate="{state}"}}')
        return {series["metric"]["alertname"] for series in found}


def without_waiting(rules: str) -> str:
    """Alert rules that fire as soon as their expression is true."""
    return re.sub(r"^ +for: .*\n", "", rules, flags=re.M)


@contextmanager
def running_prometheus(service: Service, rules: str | None = None) -> Iterator[Prometheus]:
    """Run Prometheus on a service, with the project's rules or others."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is missing; Debian has it in the package prometheus")
    with tempfile.TemporaryDirectory() as name, reserved_ports(1) as (port,):
        folder, address = Path(name), f"127.0.0.1:{port}"
        (folder / "rules.yml").write_text(rules or RULES.read_text())
        target = service.url.removeprefix("http://")
        config = _CONFIG.format(token=TOKEN, target=target, rules=folder / "rules.yml")
        (folder / "prometheus.yml").write_text(config)
        command = [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
        ]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield Prometheus(address, process, folder / "log")
        finally:
            process.terminate()
            process.wait(30)
