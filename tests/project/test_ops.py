"""Alert rules, dashboard and scrape configuration: they are valid, and name what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from app import create_app
from app.cohorts.completeness import IncompleteReason
from app.settings import ApiKey, Settings
from app.telemetry.metrics.definitions import samples
from tests.support.effort import thorough

ROOT = Path(__file__).resolve().parents[2]
OPS = ROOT / "ops"
RUNBOOK = ROOT / "docs" / "operations.md"

ALERTS = re.findall(r"^ +- alert: (\w+)$", (OPS / "alerts.yml").read_text(), re.M)
DASHBOARD: dict[str, Any] = json.loads((OPS / "dashboard.json").read_text())


def known() -> set[str]:
    """The names of all series that the service tells of."""
    found = set()
    for name, kind, _, _ in samples():
        parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        found |= {name + part for part in parts}
    return found


def named(text: str) -> set[str]:
    return set(re.findall(r"\bcohort_receiver_\w+", text))


def panels() -> Iterator[tuple[str, str]]:
    """Title and expression of everything that the dashboard draws."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


@pytest.fixture
def promtool() -> str:
    """Prometheus' own checker."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is missing; Debian has it in the package prometheus")
    return found


def run(promtool: str, *words: str) -> str:
    result = subprocess.run(
        [promtool, *words], cwd=OPS, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_alerts__every_one__is_valid(promtool: str) -> None:
    assert f"{len(ALERTS)} rules found" in run(promtool, "check", "rules", "alerts.yml")


@thorough
def test_alerts__every_one__fires_and_keeps_still_as_its_test_says(promtool: str) -> None:
    run(promtool, "test", "rules", "alerts_test.yml")


def test_alerts__every_one__has_a_test_of_firing_and_of_keeping_still() -> None:
    text = (OPS / "alerts_test.yml").read_text()
    for alert in ALERTS:
        assert re.search(rf"\{{alertname: {alert}, eval_time: ", text), f"{alert} is always there"
        fires = rf"- alertname: {alert}\n +eval_time: \w+\n +exp_alerts:\n"
        assert re.search(fires, text), f"{alert} is never there"


def test_alerts__every_one__fires_in_a_test_with_a_real_prometheus() -> None:
    text = (ROOT / "tests" / "system" / "test_alerts.py").read_text()
    fired = re.findall(r'"([A-Z]\w+)"', text)
    assert set(ALERTS) <= set(fired)


def test_alerts__every_one__is_explained_where_it_says() -> None:
    page = RUNBOOK.read_text()
    rules = (OPS / "alerts.yml").read_text()
    for alert in ALERTS:
        assert f"docs/operations.md#{alert.lower()}\n" in rules, alert
        assert f"\n### {alert}\n" in page, alert
    assert sorted(re.findall(r"^### ([A-Z]\w+)$", page, re.M)) == sorted(ALERTS)


def test_alerts__about_incomplete_cohorts__point_to_the_list_of_those_with_that_reason() -> None:
    rules = (OPS / "alerts.yml").read_text().split("- alert: ")[1:]
    about = [(re.search(r'incomplete_cohorts\{reason="(\w+)"', rule), rule) for rule in rules]
    pages = {found[1]: rule for found, rule in about if found}
    assert pages.keys() == set(IncompleteReason)
    for reason, rule in pages.items():
        assert f"dashboard: /?reason={reason}\n" in rule


def test_alerts__that_link_to_the_dashboard__name_a_page_of_it() -> None:
    app = create_app(Settings(redis_url="unix:///nowhere", api_keys=(ApiKey("a", "k"),)))
    links = re.findall(r"^ +dashboard: (\S+)$", (OPS / "alerts.yml").read_text(), re.M)
    assert links
    for link in links:
        endpoint, _ = app.url_map.bind("").match(urlsplit(link).path, method="GET")
        assert endpoint.startswith("dashboard."), link


def test_dashboard__every_expression__is_valid(promtool: str, tmp_path: Path) -> None:
    values = {"$job": ".*", "$__rate_interval": "5m"}
    rules = []
    for number, (_, expression) in enumerate(panels()):
        for variable, value in values.items():
            expression = expression.replace(variable, value)
        rules.append({"record": f"panel:{number}", "expr": expression})
    groups = {"groups": [{"name": "dashboard", "rules": rules}]}
    path = tmp_path / "dashboard.yml"
    path.write_text(json.dumps(groups))  # JSON is YAML
    assert f"{len(rules)} rules found" in run(promtool, "check", "rules", str(path))


def test_dashboard__panels__do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_dashboard__as_grafana_loads_it__is_whole() -> None:
    assert isinstance(DASHBOARD["schemaVersion"], int)
    assert DASHBOARD.get("id") is None, "an id is Grafana's own, and would overwrite another"
    assert re.fullmatch(r"[a-z0-9-]{1,40}", DASHBOARD["uid"])
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    source = {"type": variables["datasource"]["query"], "uid": "${datasource}"}
    assert source["type"] == "prometheus"
    assert variables["job"]["datasource"] == source
    for panel in DASHBOARD["panels"]:
        assert panel["type"] in {"stat", "timeseries"}, "no plugin"
        assert panel["title"]
        assert panel["description"]
        targets = panel["targets"]
        assert len({target["refId"] for target in targets}) == len(targets) > 0
        assert all(place["datasource"] == source for place in (panel, *targets))
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert used - {"__rate_interval", "__all"} == variables.keys()


def test_metrics__that_dashboard_rules_and_runbook_name__are_there() -> None:
    for text in (
        (OPS / "alerts.yml").read_text(),
        (OPS / "alerts_test.yml").read_text(),
        json.dumps(DASHBOARD),
        RUNBOOK.read_text(),
        (ROOT / "docs" / "metrics.md").read_text(),
    ):
        assert named(text) <= known() | {name for name, *_ in samples()}, named(text) - known()


def test_labels__that_rules_and_dashboard_ask_for__are_there() -> None:
    labels = {label for _, _, names, _ in samples() for label in names} | {"job", "le"}
    text = (OPS / "alerts.yml").read_text() + " ".join(expr for _, expr in panels())
    assert set(re.findall(r"[{,]\s*(\w+)(?:=~|!~|!=|=)\"", text)) <= labels
    for group in re.findall(r"\bby \(([^)]*)\)", text):
        assert {label.strip() for label in group.split(",")} <= labels


def test_prometheus_yml__as_it_stands__is_valid(promtool: str, tmp_path: Path) -> None:
    shutil.copy(OPS / "alerts.yml", tmp_path)
    (tmp_path / "token").write_text("token")
    text = (OPS / "prometheus.yml").read_text()
    token = re.search(r"credentials_file: (\S+)", text)
    assert token
    path = tmp_path / "prometheus.yml"
    path.write_text(text.replace(token[1], str(tmp_path / "token")))
    assert "SUCCESS" in run(promtool, "check", "config", str(path))
