"""Rules that the code keeps, held by reading it."""

from __future__ import annotations

import ast
import configparser
import re
import sys
import tomllib
from pathlib import Path

import pytest
from flask import Flask
from werkzeug.routing import Rule

from app import __version__, create_app
from app.auth.authenticate import ADMIN, INGEST, METRICS, PUBLIC, READ
from app.cli import GROUPS
from app.cli.reference import reference as commands
from app.errors import Problem
from app.settings import ApiKey, Settings, reference
from app.telemetry.metrics.definitions import reference as metrics

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "app"

# Which parts of the project each part may import, and which libraries it may not.
MAY_IMPORT = {
    "cohorts": {"cohorts"},
    "store": {"store", "cohorts", "settings"},
    # Only for types, and within the function that builds everything.
    "services": {"auth", "server", "settings", "store", "telemetry", "upstream", "web"},
    "web": {
        *("web", "store", "cohorts", "settings", "auth", "errors", "telemetry", "services"),
        "upstream",
    },
    "upstream": {"upstream", "store", "cohorts", "auth"},
    "telemetry": {"telemetry", "store", "cohorts"},
    "errors": {"store", "telemetry"},
    "auth": {"auth", "cohorts", "store", "errors", "settings", "services"},
    "settings": set(),
    "embedded": {"embedded", "settings", "store"},
    "server": {"auth", "errors", "server", "services", "settings", "store", "telemetry"},
    "cli": {"cli", "store", "cohorts", "settings", "telemetry", "auth", "services", "upstream"},
}
FORBIDDEN = {
    "cohorts": {"flask", "marshmallow", "redis", "limits", "gevent"},
    "store": {"flask", "marshmallow", "gevent"},
    "telemetry": {"flask", "marshmallow", "redis"},
    "web": {"redis", "limits"},
    "cli": {"redis", "limits", "gevent"},
    "auth": {"redis", "gevent"},
    "errors": {"redis"},
    "upstream": {"flask", "marshmallow", "redis", "gevent"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            if node.module == "app":
                found |= {f"app.{a.name}" for a in node.names if a.name != "__version__"}
    return found


def files_of(part: str) -> list[Path]:
    folder = APP / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [APP / f"{part}.py"]


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports__of_each_part__point_one_way(part: str) -> None:
    for path in files_of(part):
        names = imports(path)
        parts = {name.split(".")[1] for name in names if name.startswith("app.")}
        assert parts <= MAY_IMPORT[part], f"{path.name} imports {parts - MAY_IMPORT[part]}"
        libraries = {name.split(".")[0] for name in names}
        assert not libraries & FORBIDDEN.get(part, set()), path.name


@pytest.mark.parametrize(
    ("folder", "itself", "named", "optional"),
    [
        (
            "reader",
            "cohort_reader",
            {"circuitbreaker", "redis"},
            {"openfeature": "openfeature-sdk"},
        ),
        ("simulator", "simulator", {"click", "redis", "rich"}, {}),
    ],
)
def test_imports__of_what_is_installed_on_its_own__are_the_libraries_that_it_names(
    folder: str, itself: str, named: set[str], optional: dict[str, str]
) -> None:
    paths = [
        path
        for path in (ROOT / folder).rglob("*.py")
        if path.name not in THE_CALLERS_OWN.get(folder, ())
    ]
    found = {name.split(".")[0] for path in paths for name in imports(path)}
    assert found - sys.stdlib_module_names - {itself} == named | set(optional)
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    assert {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]} == named
    extras = project.get("optional-dependencies", {})
    assert {re.match(r"[\w-]+", line)[0] for lines in extras.values() for line in lines} == set(
        optional.values()
    )


# Modules for programs that have the library anyway.
THE_CALLERS_OWN = {"reader": {"pytest_plugin.py"}}


def test_packages__of_the_simulator__are_all_installed() -> None:
    folder = ROOT / "simulator"
    packages = {path.parent.relative_to(ROOT) for path in folder.rglob("__init__.py")}
    declared = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(declared["packages"]) == {".".join(path.parts) for path in packages}


def test_system_tests__talk_over_sockets_only() -> None:
    folders = (ROOT / "tests" / "system", ROOT / "tests" / "support")
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        assert not {n for n in imports(path) if n.split(".")[0] == "app"}, path.name


def test_routes__every_one__has_a_scope_and_few_are_public() -> None:
    app = create_app(Settings(redis_url="unix:///nowhere", api_keys=(ApiKey("a", "k"),)))
    scopes = {
        rule.rule: getattr(app.view_functions[rule.endpoint], "scope", None)
        for rule in app.url_map.iter_rules()
    }
    assert set(scopes.values()) <= {INGEST, READ, ADMIN, METRICS, PUBLIC}, scopes
    assert {rule for rule, scope in scopes.items() if scope == PUBLIC} == {
        *("/healthz", "/readyz", "/version"),
        *("/openapi.json", "/docs", "/docs/<string:name>"),
        *("/login", "/assets/<string:name>"),
    }


def test_pages__every_one__needs_a_session_and_no_call_takes_one() -> None:
    app = create_app(Settings(redis_url="unix:///nowhere", api_keys=(ApiKey("a", "k"),)))
    for name, view in app.view_functions.items():
        is_page = name.startswith("dashboard.") and view.scope != PUBLIC
        assert getattr(view, "by_session", False) == is_page, name


def test_routes__every_one__is_described() -> None:
    pages = ("http-api.md", "dashboard.md")
    page = "".join((ROOT / "docs" / name).read_text() for name in pages)
    page = page.replace("<id>", "<list id>")
    app = create_app(Settings(redis_url="unix:///nowhere", api_keys=(ApiKey("a", "k"),)))
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<\w+:(\w+)>", lambda m: f"<{m[1].replace('_', ' ')}>", rule.rule)
        if not path.endswith("/"):
            # `/lists/<id>/add`, `/remove` and the like are named by their last part
            assert (
                path in page
                or f"`{path[path.rindex('/') :]}`" in page
                or (f"`{path.rpartition('/')[2]}`" in page)
            ), path


def test_calls__every_one__says_what_it_takes_and_gives() -> None:
    app = create_app(Settings(redis_url="unix:///nowhere", api_keys=(ApiKey("a", "k"),)))
    described = {rule.rule for rule in app.url_map.iter_rules() if contract_of(app, rule)}
    pages = {"dashboard", "openapi"}
    assert described == {
        rule.rule
        for rule in app.url_map.iter_rules()
        if rule.endpoint.partition(".")[0] not in pages
    }


def contract_of(app: Flask, rule: Rule) -> object:
    return getattr(app.view_functions[rule.endpoint], "contract", None)


def test_errors__every_reason__is_described() -> None:
    page = (ROOT / "docs" / "http-api.md").read_text()
    kinds = [Problem]
    for kind in kinds:
        kinds += kind.__subclasses__()
    reasons = {problem.reason for kind in kinds[1:] for problem in kind.examples()}
    assert len(reasons) > 25
    assert not [reason for reason in sorted(reasons) if f"`{reason}`" not in page]


def test_settings__every_one__is_in_the_reference() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert reference() in page, "docs/configuration.md is not up to date: run `make docs`"


def test_metrics__every_one__is_in_the_reference() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert page.endswith(metrics()), "docs/metrics.md is not up to date: run `make docs`"


def test_commands__every_one__is_in_the_reference() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    assert page.endswith(commands()), "docs/cli.md is not up to date: run `make docs`"
    for group in GROUPS:
        for name in group.commands:
            assert re.search(f"### {group.name} {name}[ \n]", page)


def test_requirements__every_line__is_pinned_with_a_hash() -> None:
    for name in (
        "requirements.txt",
        "requirements/service.txt",
        "requirements/dev.txt",
        "requirements/browser.txt",
        "requirements/fuzz.txt",
        "requirements/supply-chain.txt",
    ):
        entries = re.split(r"\n(?=\S)", (ROOT / name).read_text())
        for entry in entries:
            if not entry.startswith("#"):
                assert "==" in entry, entry
                assert "--hash=sha256:" in entry, entry


def test_version__of_the_service_its_description_and_its_packages__is_the_same() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == "attr: app.__version__"
    app = create_app(Settings(redis_url="unix:///nowhere", api_keys=(ApiKey("a", "k"),)))
    description = app.test_client().get("/openapi.json").get_json()
    assert description["info"]["version"] == __version__
    for folder in ("reader", "simulator"):
        project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
        assert project["version"] == __version__, folder


def test_readme__names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make run" in readme
    assert "make test" in readme


def test_makefile__every_target__is_listed_by_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.M)
    assert phony
    helped = set(re.findall(r"^([a-z-]+):.*##", makefile, re.M))
    assert helped == set(phony[1].split())
    assert helped >= {"run", "test", "lint", "types", "bench", "simulate", "docs", "release"}
