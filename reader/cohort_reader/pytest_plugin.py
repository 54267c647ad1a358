"""Fixtures: ``pytest_plugins = ["cohort_reader.pytest_plugin"]`` in your ``conftest.py``."""

from __future__ import annotations

import pytest

from cohort_reader.testing import (
    InMemoryAsyncCohortReader,
    InMemoryCohortReader,
    InMemoryCohorts,
)


@pytest.fixture
def cohorts() -> InMemoryCohorts:
    """Users and cohorts in memory, none at first; the readers below read them."""
    return InMemoryCohorts()


@pytest.fixture
def cohort_reader(cohorts: InMemoryCohorts) -> InMemoryCohortReader:
    """A reader of ``cohorts`` that raises UnknownCohort for what the test didn't add."""
    return InMemoryCohortReader(cohorts, strict=True)


@pytest.fixture
def async_cohort_reader(cohorts: InMemoryCohorts) -> InMemoryAsyncCohortReader:
    """The same for asyncio."""
    return InMemoryAsyncCohortReader(cohorts, strict=True)
