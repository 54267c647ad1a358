"""``python -m cohort_reader check MODULE:NAME``: are the declared cohorts in the store?"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from enum import Enum, EnumType
from typing import Any

from redis.exceptions import RedisError

from cohort_reader.connect import connect
from cohort_reader.errors import UNAVAILABLE_ERRORS, UnknownApp
from cohort_reader.reader import CohortReader

OK, UNKNOWN, FAILED = 0, 1, 2


def declared(where: str) -> dict[str, str]:
    """The cohort ids declared at ``module:name``, by name.

    Raises:
        ValueError: there is no such name, or it has no cohort ids.
    """
    module, colon, name = where.partition(":")
    if not (module and colon and name):
        raise ValueError(f"{where!r} is not of the form module:name")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{where}: {error}") from error
    if isinstance(found, EnumType):
        members: dict[str, Enum] = dict(found.__members__)
        pairs: Iterable[tuple[Any, Any]] = ((key, member.value) for key, member in members.items())
    elif isinstance(found, Mapping):
        pairs = found.items()
    elif isinstance(found, Iterable) and not isinstance(found, (str, bytes)):
        pairs = ((item, item) for item in found)
    else:
        raise ValueError(f"{where} is not an enum, a mapping or an iterable of cohort ids")
    cohorts = dict(pairs)
    if not cohorts or not all(isinstance(item, str) for pair in cohorts.items() for item in pair):
        raise ValueError(f"{where} must contain at least one cohort id, and only strings")
    return cohorts


def check(reader: CohortReader, cohorts: Mapping[str, str]) -> list[str]:
    """One line for each cohort that is not in the store, with ids that are similar."""
    known = reader.cohort_ids()
    lines = []
    for name, cohort_id in cohorts.items():
        if cohort_id not in known:
            similar = difflib.get_close_matches(cohort_id, known, 3)
            hint = f"; similar: {', '.join(similar)}" if similar else ""
            label = "" if name == cohort_id else f"{name} = "
            lines.append(f"{label}{cohort_id!r} is not in the store{hint}")
    return lines


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m cohort_reader")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("check", help="check that declared cohorts exist in the store")
    command.add_argument(
        "where", metavar="MODULE:NAME", help="an enum, a mapping or an iterable of cohort ids"
    )
    command.add_argument("--url", help="the store; by default $REDIS_URL")
    command.add_argument("--app", default="default", help='the app id; by default "default"')
    command.add_argument(
        "--prefix", default="cohorts", help='the receiver\'s KEY_PREFIX; by default "cohorts"'
    )
    options = parser.parse_args(arguments)
    url = options.url or os.environ.get("REDIS_URL")
    if not url:
        command.error("--url or $REDIS_URL is needed")
    try:
        cohorts = declared(options.where)
        with connect(url, timeout_seconds=5) as client:
            reader = CohortReader(client, app=options.app, prefix=options.prefix, strict=True)
            unknown = check(reader, cohorts)
    except (ValueError, UnknownApp, RedisError, *UNAVAILABLE_ERRORS) as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    for line in unknown:
        sys.stdout.write(f"{line}\n")
    if unknown:
        return UNKNOWN
    sys.stdout.write(f"all {len(cohorts)} cohorts exist\n")
    return OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
