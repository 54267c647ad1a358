"""The Grafana dashboard's panels, drawn by a real Prometheus on the running service."""

from __future__ import annotations

import json

from tests.support.cli import flask
from tests.support.effort import thorough
from tests.support.polling import wait_until
from tests.support.prometheus import TOKEN, running_prometheus
from tests.support.service import APP, ROOT, running
from tests.support.stores import socket_url, start_store, store_folder


@thorough
def test_dashboard__every_panel_on_the_running_service__has_something_to_draw() -> None:
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
            with running(env) as service, running_prometheus(service) as prometheus:
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
                    return bool(prometheus.query(panels[place]))

                wait_until(sent)
                for place in panels:
                    wait_until(lambda place=place: drawn(place))
                (job,) = prometheus.ask("label/job/values?match[]=cohort_receiver_store_up")
                assert job == "cohort-receiver"  # what the variable offers
        finally:
            store.terminate()
            store.wait(30)
