"""How much the tests try: enough to notice a mistake, or all they can, as CI does."""

from __future__ import annotations

import os

import pytest

THOROUGH = os.environ.get("TEST_EFFORT") == "thorough"

thorough = pytest.mark.skipif(not THOROUGH, reason="for TEST_EFFORT=thorough, as in CI")
