"""What docs/amplitude-setup.md says to paste into the Developer Portal is accepted here."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from app.services import services
from app.web.dashboard.setup import TEMPLATES
from tests.integration.conftest import APP, caller

DOCS = Path(__file__).resolve().parents[4] / "docs"
ADD, REMOVE = "add", "remove"


def pasted(heading: str) -> list[str]:
    """The templates in a step of the page."""
    page = (DOCS / "amplitude-setup.md").read_text()
    step = page.split(f"**{heading}", 1)[1].split("\n**", 1)[0]
    return re.findall(r"^```json\n(.*?)\n```$", step, re.M | re.S)


def rendered(template: str, **variables: str) -> str:
    for name, value in variables.items():
        template = template.replace(f"${name}", value)
    assert "$" not in template
    return template


class Portal:
    """Sends what the portal would for the file of the Testing tab."""

    def __init__(self, app: Flask) -> None:
        self._http = caller(app)
        with (DOCS / "amplitude-testing.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        (name,) = {f"{row['amp_cohort_name']}: {row['amp_cohort_id']}" for row in rows}
        self.name = f"[Amplitude] {name}"
        self.users = {
            operation: [
                row["user_id_field_amplitude"] for row in rows if row["operation"] == operation
            ]
            for operation in (ADD, REMOVE)
        }

    def items(self, template: str, operation: str) -> str:
        users = (
            rendered(template, amplitude_cohort_name=self.name, user_id_field_amplitude=user)
            for user in self.users[operation]
        )
        return f"[{','.join(users)}]"

    def post(self, path: str, body: str) -> Any:
        reply = self._http.post(path, json=json.loads(body))
        assert reply.status_code == 200, reply.text
        return reply.json


@pytest.fixture
def portal(app: Flask) -> Portal:
    return Portal(app)


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    return make_app()


def members(app: Flask) -> set[str]:
    page, _ = services(app).store.lookups.members(APP, "test123", limit=100)
    return {member.user_id for member in page}


def test_property_based__templates__store_the_users_of_the_testing_file(
    app: Flask, portal: Portal
) -> None:
    payload, item = pasted("6a.")
    for operation, template in ((ADD, item), (REMOVE, item.replace("true", "false"))):
        body = rendered(payload, items=portal.items(template, operation))
        portal.post("/api/v1/integration/amplitude/cohort", body)
    assert members(app) == {"user_one@example.com", "user_two@example.com"}


def test_list_based__templates__store_the_users_of_the_testing_file(
    app: Flask, portal: Portal
) -> None:
    creation, payload, item = pasted("6b.")
    reply = portal.post("/lists", rendered(creation, amplitude_cohort_name=portal.name))
    list_id = reply["response"]["listId"]
    assert list_id == "test123"  # as in the dashboard's test message
    for operation in (ADD, REMOVE):
        body = rendered(payload, items=portal.items(item, operation))
        portal.post(f"/lists/{list_id}/{operation}", body)
    assert members(app) == {"user_one@example.com", "user_two@example.com"}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_templates__of_the_dashboard__are_those_of_the_page(template: str) -> None:
    assert f"\n{template}\n```" in (DOCS / "amplitude-setup.md").read_text()
