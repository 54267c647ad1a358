"""Error texts do not depend on docstrings, which ``python -OO`` removes."""

from __future__ import annotations

import json
import subprocess
import sys

from app.cohorts import ResyncRefusal
from app.errors import Problem
from app.store import StoreError
from tests.support.effort import thorough

PRINT_TEXTS = """
import json
from app import create_app
from app.settings import ApiKey, Settings
from tests.unit.test_errors import texts
app = create_app(Settings(redis_url="unix:///nowhere", api_keys=(ApiKey("a", "k"),)))
description = app.test_client().get("/openapi.json")
print(json.dumps([__doc__, description.status_code, texts()]))
"""


def kinds_of(*first: type[Problem | StoreError]) -> list[type[Problem | StoreError]]:
    """These errors and all that derive from them."""
    return [*first, *(one for kind in first for one in kinds_of(*kind.__subclasses__()))]


def texts() -> dict[str, str]:
    """The text of every error, by the name of its class."""
    return {kind.__name__: kind.detail for kind in kinds_of(Problem, StoreError)}


def test_refusal__of_a_resync__is_the_reason_of_an_error() -> None:
    refused = set(ResyncRefusal) - {ResyncRefusal.REQUESTS_FAILED}  # a call may finish that one
    assert refused <= {kind.reason for kind in kinds_of(Problem)}


@thorough
def test_texts__without_docstrings__are_the_same() -> None:
    run = subprocess.run(
        [sys.executable, "-OO", "-c", PRINT_TEXTS], capture_output=True, check=True, text=True
    )
    docstring, status, without_docstrings = json.loads(run.stdout.splitlines()[-1])
    assert docstring is None
    assert status == 200
    assert without_docstrings == texts()
    empty = [name for name, text in texts().items() if not text]
    assert empty == ["Problem"]
