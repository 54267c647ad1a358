"""Select checks, run them and collect the report."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Sequence

from .. import payloads
from ..connection import describe_error
from ..reader import Reader, ReaderError
from ..replies import excerpt
from .context import Context, Failed, Skipped
from .model import Check, Options, Outcome, Report, Verdict


class Unauthorised(Exception):
    """The receiver refuses the key."""


def run_checks(
    options: Options,
    checks: Sequence[Check],
    reader: Reader | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> Report:
    """Run the selected checks one after the other and return the report.

    Raises `Unauthorised` if the receiver refuses the key, and `ReaderError`.
    """
    report = Report(options.target.url, options.seed, reader is not None, time.time())
    started = time.perf_counter()
    context = Context(options, reader, report.samples)
    try:
        _try_key(context)
        report.samples.clear()
        for check in select_checks(checks, options):
            outcome = _run(check, context, compared=report.compared)
            report.outcomes.append(outcome)
            if on_outcome:
                on_outcome(outcome)
    finally:
        context.close()
        report.seconds = time.perf_counter() - started
    return report


def select_checks(checks: Sequence[Check], options: Options) -> list[Check]:
    """Return the checks of the options' modes that `only` and `skip` leave."""

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


def _try_key(context: Context) -> None:
    context.begin("the key")
    options, users, cohort = context.options, context.users(1), context.cohort()
    trait = payloads.trait_name(*cohort)
    if "property" in options.modes:
        reply = context.identify(payloads.identify(users[0], trait, True))
    elif "list" in options.modes:
        reply = context.post(options.lists_path, payloads.list_create(trait))
    else:
        reply = context.webhook(
            payloads.webhook(
                *cohort,
                users,
                True,
                computed_time=int(time.time()),
                message_id=context.message_id(),
            )
        )
    if reply.status in (401, 403):
        raise Unauthorised(f"{reply.status} {excerpt(reply.body)}")
