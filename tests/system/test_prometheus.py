"""A real Prometheus, with the rules as they are, on the running service."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from tests.conftest import socket_url, start_store, store_folder
from tests.system.service import ROOT, running, wait_until

TOKEN = "TEST_METRICS_TOKEN"

# Where Prometheus listens, as it can't tell which port it was given.
CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
scrape_configs:
  - job_name: cohort-receiver
    authorization: {{credentials: {token}}}
    static_configs: [{{targets: ["{target}"]}}]
rule_files: ["{rules}"]
"""

Ask = Callable[[str], Any]


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[[str], Ask]]:
    """Start Prometheus on a target. In CI it must be there."""
    program = shutil.which("prometheus")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("prometheus is missing, which CI must have")
        pytest.skip("prometheus is missing; Debian has it in the package prometheus")
    processes: list[subprocess.Popen[bytes]] = []

    def start(target: str) -> Ask:
        rules = ROOT / "ops" / "alerts.yml"
        config = CONFIG.format(token=TOKEN, target=target, rules=rules)
        (tmp_path / "prometheus.yml").write_text(config)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        command = [
            program,
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address={address}",
        ]
        with (tmp_path / "log").open("wb") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        http = urllib3.PoolManager(retries=False, timeout=10)

        def ask(path: str) -> Any:
            assert processes[0].poll() is None, (tmp_path / "log").read_text()
            try:
                reply = http.request("GET", f"http://{address}/api/v1/{path}")
            except urllib3.exceptions.HTTPError:
                return {}  # it does not listen yet
            return json.loads(reply.data).get("data", {}) if reply.status == 200 else {}

        return ask

    yield start
    for process in processes:
        process.terminate()
        process.wait(30)


def value(ask: Ask, name: str) -> float | None:
    found = ask(f"query?query={name}").get("result")
    return float(found[0]["value"][1]) if found else None


def test_prometheus__on_the_service__reads_its_metrics_and_sees_the_store_go(
    prometheus: Callable[[str], Ask],
) -> None:
    with store_folder() as folder:
        store = start_store(folder)
        env = {"REDIS_URL": socket_url(folder), "METRICS_TOKEN": TOKEN}
        with running(env) as service:
            body = {"type": "identify", "userId": "ann", "traits": {"Buyers:b1": True}}
            assert service.post(body).status == 200
            ask = prometheus(service.url.removeprefix("http://"))
            wait_until(lambda: value(ask, "cohort_receiver_users_accepted_total") == 1)
            wait_until(lambda: value(ask, "cohort_receiver_store_up") == 1)

            (group,) = ask("rules")["groups"]
            wait_until(lambda: {r["health"] for r in ask("rules")["groups"][0]["rules"]} == {"ok"})
            assert len(group["rules"]) > 10

            store.terminate()
            store.wait(30)
            wait_until(lambda: value(ask, "cohort_receiver_store_up") == 0)
            states = 'ALERTS{alertname="StoreDown"}'
            wait_until(lambda: value(ask, states) == 1)  # pending: it fires after a minute
