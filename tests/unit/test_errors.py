"""Error texts do not depend on docstrings, which ``python -OO`` removes."""

from __future__ import annotations

import json
import subprocess
import sys

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


def texts() -> dict[str, str]:
    """The text of every error, by the name of its class."""
    kinds, found = [Problem, StoreError], {}
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        found[kind.__name__] = kind.detail
    return found


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
