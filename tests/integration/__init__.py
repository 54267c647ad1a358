"""Tests of the service in this process, on a real store."""

import pytest

pytest.register_assert_rewrite("tests.integration.web.ingest.contract")
