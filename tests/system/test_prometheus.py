"""A real Prometheus, with the rules as they are, on the running service."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
import urllib3

from tests.support.cli import flask
from tests.support.effort import thorough
from tests.support.polling import wait_until
from tests.support.service import APP, ROOT, running
from tests.support.stores import reserved_ports, socket_url, start_store, store_folder

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
    """Start Prometheus on a target."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is missing; Debian has it in the package prometheus")
    processes: list[subprocess.Popen[bytes]] = []
    ports = ExitStack()

    def start(target: str) -> Ask:
        rules = ROOT / "ops" / "alerts.yml"
        config = CONFIG.format(token=TOKEN, target=target, rules=rules)
        (tmp_path / "prometheus.yml").write_text(config)
        (port,) = ports.enter_context(reserved_ports(1))
        address = f"127.0.0.1:{port}"
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
    ports.close()


def value(ask: Ask, name: str) -> float | None:
    found = ask(f"query?query={name}").get("result")
    return float(found[0]["value"][1]) if found else None


@thorough
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


@thorough
def test_dashboard__every_panel_on_the_running_service__has_something_to_draw(
    prometheus: Callable[[str], Ask],
) -> None:
    dashboard = json.loads((ROOT / "ops" / "dashboard.json").read_text())
    panels = {
        (panel["title"], target["refId"]): target["expr"]
        .replace("$job", "cohort-receiver")
        .replace("$__rate_interval", "1m")
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }
    assert len(panels) > 15
    with store_folder() as folder:
        store = start_store(folder, "--maxmemory", "1gb")
        try:
            url = socket_url(folder)
            env = {"REDIS_URL": url, "METRICS_TOKEN": TOKEN, "USER_POLICY": "known"}
            with running(env) as service:
                ask = prometheus(service.url.removeprefix("http://"))
                words = ("keys", "create", "--json", "--app-id", APP, "--expires", "9d")
                made = json.loads(flask(url, *words).stdout)
                key = {"Authorization": f"Bearer {made['key']}"}
                users = flask(url, "users", "register", "-", "--app-id", APP, input="ann\n")
                assert users.returncode == 0, users.stderr

                def sent() -> bool:
                    """Some that is good, some that is left out and some that is refused."""
                    batch = [
                        {"type": "identify", "userId": user, "traits": {"Buyers:b1": True}}
                        for user in ("ann", "unknown")
                    ]
                    service.post(b"{")
                    return service.post({"batch": batch}, **key).status == 200

                def drawn(place: tuple[str, str]) -> bool:
                    """Whether Prometheus has something for a panel."""
                    sent()
                    return bool(ask(f"query?query={quote(panels[place])}").get("result"))

                wait_until(sent)
                for place in panels:
                    wait_until(lambda place=place: drawn(place))
                (job,) = ask("label/job/values?match[]=cohort_receiver_store_up")
                assert job == "cohort-receiver"  # what the variable offers
        finally:
            store.terminate()
            store.wait(30)


@thorough
def test_alerts__about_refused_calls__fire_at_the_first_burst(
    prometheus: Callable[[str], Ask], store_url: str
) -> None:
    env = {"REDIS_URL": store_url, "METRICS_TOKEN": TOKEN, "WEB_CONCURRENCY": "2"}
    with running(env | {"AUTH_FAILURE_RATE_LIMIT": "off", "RATE_LIMIT": "off"}) as service:
        ask = prometheus(service.url.removeprefix("http://"))
        wait_until(lambda: value(ask, "cohort_receiver_build_info") == 1)
        assert value(ask, quote('ALERTS{alertstate="firing"}')) is None
        for _ in range(15):
            assert service.post({}, api_key="nobody").status == 401
        for _ in range(40):
            assert service.post(b"{").status == 400
        for alert in ("CallersRefused", "PayloadsRefused"):
            firing = f'ALERTS{{alertname="{alert}",alertstate="firing"}}'
            wait_until(lambda firing=firing: value(ask, quote(firing)) == 1)


@thorough
@pytest.mark.parametrize(
    ("alert", "settings"),
    [
        ("StoreFull", {"maxmemory-policy": "noeviction", "maxmemory": "1mb"}),
        ("StoreReadOnly", {"min-replicas-to-write": "1"}),
    ],
    ids=["StoreFull", "StoreReadOnly"],
)
def test_alerts__about_a_store_that_refuses_writes__fire_at_the_first_one(
    prometheus: Callable[[str], Ask], alert: str, settings: dict[str, str]
) -> None:
    firing = quote(f'ALERTS{{alertname="{alert}",alertstate="firing"}}')
    with store_folder() as folder:
        store = start_store(folder)
        try:
            url = socket_url(folder)
            with running({"REDIS_URL": url, "METRICS_TOKEN": TOKEN}) as service:
                body = {"type": "identify", "userId": "ann", "traits": {"Buyers:b1": True}}
                assert service.post(body).status == 200
                ask = prometheus(service.url.removeprefix("http://"))
                wait_until(lambda: value(ask, "cohort_receiver_store_up") == 1)
                assert value(ask, firing) is None
                with redis.Redis.from_url(url) as client:
                    for name, setting in settings.items():
                        client.config_set(name, setting)
                assert service.post({**body, "userId": "bob"}).status == 503
                wait_until(lambda: value(ask, firing) == 1)
        finally:
            store.terminate()
            store.wait(30)
