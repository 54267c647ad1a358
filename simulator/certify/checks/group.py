"""Collects the checks of a module."""

from __future__ import annotations

from collections.abc import Callable

from ...cohort_sync import Mode
from ..context import Context
from ..model import Check, Level, Origin

Run = Callable[[Context], str | None]


class CheckGroup(list[Check]):
    """The checks of one module, in order of definition."""

    def check(
        self,
        name: str,
        mode: Mode,
        requirement: str,
        level: Level = "must",
        origin: Origin = "document",
    ) -> Callable[[Run], Run]:
        """Add the decorated function as a check.

        It raises `Failed` or `Skipped`, and may return a detail to report.
        """

        def decorate(run: Run) -> Run:
            self.append(Check(name, mode, level, origin, requirement, run))
            return run

        return decorate
