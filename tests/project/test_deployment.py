"""The files that hosts read, and the settings that they name."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from app.settings import Settings, env_name

ROOT = Path(__file__).resolve().parents[2]


def test_app_json__environment__names_known_settings_only() -> None:
    manifest = json.loads((ROOT / "app.json").read_text())
    assert manifest["env"].keys() <= {env_name(field) for field in fields(Settings)}


def test_app_json__store__is_attached_as_the_setting_that_the_service_reads() -> None:
    manifest = json.loads((ROOT / "app.json").read_text())
    assert [addon["as"] + "_URL" for addon in manifest["addons"]] == ["REDIS_URL"]


def test_procfile__web_line__is_what_the_documentation_says() -> None:
    (line,) = (ROOT / "Procfile").read_text().splitlines()
    command = line.removeprefix("web: ")
    assert f"`{command}`" in (ROOT / "docs" / "deploy.md").read_text()
