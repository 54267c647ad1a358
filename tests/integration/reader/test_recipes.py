"""The recipes of docs/python-reader.md, run as printed: with a store, without one, and in tests."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from flask import Flask

from app.settings import ApiKey
from cohort_reader.testing import InMemoryAsyncCohortReader, InMemoryCohortReader, InMemoryCohorts
from tests.integration.conftest import caller
from tests.integration.reader.conftest import Service
from tests.integration.reader.docs_examples import examples
from tests.support.effort import thorough
from tests.support.polling import DEADLINE

COHORTS = InMemoryCohorts({"abc123": ["carol"]})


@pytest.fixture
def load(
    make_app: Callable[..., Flask], store_url: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], ModuleType]:
    """Load a recipe as a module; alice is in abc123."""

    def load(mark: str) -> ModuleType:
        app = make_app(api_keys=(ApiKey("default", "key"),))
        Service(caller(app, "key"), 1).push("alice")
        monkeypatch.setenv("REDIS_URL", store_url)
        (example,) = [e for e in examples("python-reader.md", "python") if e.mark == mark]
        module = ModuleType(f"recipe_{mark}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(example.code, mark, "exec"), module.__dict__)
        return module

    return load


@thorough
def test_fastapi__recipe__answers_and_can_be_tested(load: Callable[[str], ModuleType]) -> None:
    recipe = load("fastapi")

    async def get(user_id: str) -> Any:
        async with (
            recipe.lifespan(recipe.app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(recipe.app), base_url="http://test"
            ) as http,
        ):
            return (await http.get(f"/banner/{user_id}")).json()

    assert asyncio.run(get("alice")) == {"show": True}
    assert asyncio.run(get("bob")) == {"show": False}
    recipe.app.dependency_overrides[recipe.cohort_reader] = lambda: InMemoryAsyncCohortReader(
        COHORTS
    )
    assert asyncio.run(get("alice")) == {"show": False}
    assert asyncio.run(get("carol")) == {"show": True}


def test_flask__recipe__answers_and_can_be_tested(load: Callable[[str], ModuleType]) -> None:
    recipe = load("flask")

    def get(user_id: str, *arguments: object) -> Any:
        return recipe.create_app(*arguments).test_client().get(f"/banner/{user_id}").json

    assert get("alice") == {"show": True}
    assert get("bob") == {"show": False}
    assert get("carol", InMemoryCohortReader(COHORTS)) == {"show": True}


def test_django__recipe__answers_and_can_be_tested(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.conf import settings
    from django.test import Client

    recipe = load("django")
    if not settings.configured:
        settings.configure(ROOT_URLCONF=recipe.__name__, ALLOWED_HOSTS=["*"])

    def get(user_id: str) -> Any:
        return Client().get(f"/banner/{user_id}").json()

    assert get("alice") == {"show": True}
    assert get("bob") == {"show": False}
    monkeypatch.setattr(recipe, "cohort_reader", lambda: InMemoryCohortReader(COHORTS))
    assert get("carol") == {"show": True}


@thorough
def test_pytest__example__passes_with_the_plugin(tmp_path: Path) -> None:
    (example,) = [e for e in examples("python-reader.md", "python") if e.mark == "pytest"]
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["cohort_reader.pytest_plugin"]\n')
    typo = (
        "import cohort_reader as package, pytest\n"
        "def test_typo(cohorts, cohort_reader, async_cohort_reader):\n"
        '    cohorts.enter("abc123", "alice")\n'
        "    with pytest.raises(package.UnknownCohort):\n"
        '        cohort_reader.is_member("alice", "typo")\n'
    )
    (tmp_path / "test_example.py").write_text(example.code + typo)
    reader = Path(__file__).resolve().parents[3] / "reader"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(reader)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout
