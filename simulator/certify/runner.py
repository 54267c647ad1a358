"""Select checks, run them and collect the report."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any
from urllib.parse import quote

from .. import payloads
from ..cohort_sync import Mode
from ..connection import describe_error
from ..reader import Reader, ReaderError
from ..replies import excerpt, list_id
from .context import Context, Failed, Skipped
from .model import Check, Options, Outcome, Report, Verdict

PATH_OPTIONS: dict[Mode, str] = {
    "property": "--path",
    "list": "--lists-path",
    "webhook": "--webhook-path",
}


class Unauthorised(Exception):
    """The receiver refuses the key."""


class WrongPath(Exception):
    """There is nothing at a path. The text says so in a sentence."""


class NothingFound(Exception):
    """The reader finds none of the users that the receiver acknowledged."""


def run_checks(
    options: Options,
    checks: Sequence[Check],
    reader: Reader | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> Report:
    """Run the selected checks one after the other and return the report.

    Raises `Unauthorised` if the receiver refuses the key, `WrongPath` if one of the selected modes
    returns 404, `NothingFound` if the reader reads from another place, and `ReaderError`.
    """
    report = Report(options.target.url, options.seed, reader is not None, time.time())
    started = time.perf_counter()
    context = Context(options, reader, report.samples)
    try:
        selected = select_checks(checks, options)
        _try_modes(context, {check.mode for check in selected})
        report.samples.clear()
        for check in selected:
            outcome = _run(check, context, compared=report.compared)
            report.outcomes.append(outcome)
            if on_outcome:
                on_outcome(outcome)
    finally:
        context.close()
        report.seconds = time.perf_counter() - started
    return report


def select_checks(checks: Sequence[Check], options: Options) -> list[Check]:
    """Return the checks that the options select by mode, `only` and `skip`."""

    def matches(check: Check, patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(check.name, pattern) for pattern in patterns)

    return [
        check
        for check in checks
        if check.mode in options.modes
        and (not options.only or matches(check, options.only))
        and not matches(check, options.skip)
    ]


def _run(check: Check, context: Context, *, compared: bool) -> Outcome:
    context.begin(check.name)
    started = time.perf_counter()
    verdict: Verdict
    try:
        detail = check.run(context) or ""
        verdict = "passed"
    except Failed as failure:
        verdict, detail = "failed", str(failure)
    except Skipped as skipped:
        verdict, detail = "skipped", str(skipped)
    except ReaderError:
        raise
    except Exception as error:  # noqa: BLE001 - an unexpected reply can break a check anywhere
        verdict, detail = "failed", describe_error(error)
    return Outcome(check, verdict, detail, time.perf_counter() - started, compared)


def _try_modes(context: Context, modes: Collection[Mode]) -> None:
    """Send one user in each mode, to find a wrong key, path or reader before all checks fail."""
    context.begin("the key")
    options, users, cohort = context.options, context.users(1), context.cohort()
    trait, now = payloads.trait_name(*cohort), int(time.time())
    bodies: dict[Mode, tuple[str, Any]] = {
        "property": (options.path, payloads.identify(users[0], trait, True)),
        "list": (options.lists_path, payloads.list_create(trait)),
        "webhook": (
            options.webhook_path,
            payloads.webhook(
                *cohort, users, True, computed_time=now, message_id=context.message_id()
            ),
        ),
    }
    acknowledged = False
    for mode, (path, body) in bodies.items():
        if mode not in modes:
            continue
        reply = context.post(path, body)
        if reply.status in (401, 403):
            raise Unauthorised(f"{reply.status} {excerpt(reply.body)}")
        if reply.status == 404:
            raise WrongPath(
                f"A request to {path} got a 404 ({excerpt(reply.body)}). "
                f"Is {options.target.url} the receiver's base address, "
                f"and {PATH_OPTIONS[mode]} its path? "
                f"If the receiver doesn't support the mode {mode}, leave it out of --modes."
            )
        if mode == "list":  # its creation names no user
            created = quote(list_id(reply.json()) or "-", safe="")
            path = f"{path.rstrip('/')}/{created}/add"
            reply = context.post(path, payloads.list_users(users))
        acknowledged = acknowledged or reply.ok
    if context.reader is not None and acknowledged and not any(context.reader.traits(users)):
        raise NothingFound
