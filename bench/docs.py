"""Puts what was measured into docs/benchmarks.md, and says what it was measured on."""

from __future__ import annotations

import os
import platform
import re
from argparse import Namespace
from collections.abc import Sequence
from datetime import UTC, datetime

from bench.measure import tell_stderr
from bench.report import Bar
from bench.servers import ROOT, running_store

PAGE = ROOT / "docs" / "benchmarks.md"


def tell(section: str, text: str, bars: Sequence[Bar], options: Namespace) -> int:
    """Print what was measured, and write it where ``--write-docs`` says so.

    Returns:
        the exit code: 1 when a bar is missed.
    """
    tell_stderr("")
    print(text)
    if options.write_docs:
        write(section, text)
    return 0 if all(bar.passed for bar in bars) else 1


def write(section: str, text: str) -> None:
    """Replace what stands between the marks of ``section``. Raises ValueError where none are."""
    page = PAGE.read_text()
    begin, end = f"<!-- {section}: measured -->", f"<!-- {section}: end -->"
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"{PAGE.name} has no section {section}")
    made = f"{begin}\n\n{setting()}\n\n{text}\n\n{end}"
    PAGE.write_text(pattern.sub(lambda _: made, page))


def setting() -> str:
    """One sentence on where and when it was measured."""
    with running_store() as store:
        server = store.client.info("server")
    name = "Valkey" if "valkey_version" in server else "Redis"
    version = server.get("valkey_version", server["redis_version"])
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d}, on {os.cpu_count()} cores that the service, "
        f"its store and the load generator share; Python {platform.python_version()}, "
        f"{name} {version} with an append-only file."
    )
