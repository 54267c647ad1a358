"""Whole syncs, and the same cohort through several modes."""

from __future__ import annotations

import time

from ... import payloads
from ...cohort import Cohort
from ...cohort_sync import CohortSync, Mode
from ...expected_state import compare
from ...faults import FaultRates
from ..context import Context, Failed, Skipped, expect
from .calls import create_list, list_path, webhook_body
from .group import CheckGroup

group = CheckGroup()


@group.check(
    "modes.same-cohort",
    "list",
    "A cohort is identified by its id and name in every mode: list, property and webhook set "
    "the same trait.",
    level="should",
    origin="known",
)
def modes_same_cohort(c: Context) -> str | None:
    if c.reader is None:
        raise Skipped("needs --reader")
    cohort, [user] = c.cohort(), c.users(1)
    trait = payloads.trait_name(*cohort)
    path = list_path(c, create_list(c, trait), "add")
    expect(c.post(path, payloads.list_users([user])), 200, label="list")
    c.expect_exact_traits(user, {trait: True})
    if "property" in c.options.modes:
        expect(c.identify(payloads.identify(user, trait, False)), 200, label="property")
        c.expect_exact_traits(user, {trait: False})
    if "webhook" in c.options.modes:
        now = int(time.time())
        # A webhook carries whole seconds: wait for one after the previous update.
        while time.time() < now + 1:
            time.sleep(0.05)
        expect(
            c.webhook(webhook_body(c, cohort, [user], True, int(time.time()))), 200, label="webhook"
        )
        c.expect_exact_traits(user, {trait: True})
    return None


@group.check(
    "sync.property",
    "property",
    "A full sync and three differences, with duplicates, lost replies, cut bodies and late "
    "retries, are delivered; with --reader, the stored state is as expected.",
)
def sync_property(c: Context) -> str:
    return whole_sync(c, "property", c.options.path)


@group.check(
    "sync.list", "list", "Whole syncs as in sync.property, by list creation, add and remove."
)
def sync_list(c: Context) -> str:
    return whole_sync(c, "list", c.options.lists_path)


@group.check(
    "sync.webhook",
    "webhook",
    "Whole syncs as in sync.property, by webhook: a late retry doesn't override a newer update.",
    origin="known",
)
def sync_webhook(c: Context) -> str:
    return whole_sync(c, "webhook", c.options.webhook_path)


def whole_sync(c: Context, mode: Mode, path: str) -> str:
    name, cohort_id = c.cohort("Whole sync")
    cohort = Cohort.synthetic(name, cohort_id, 2_000, churn=0.2, seed=c.options.seed)
    with CohortSync(
        c.options.target,
        cohort,
        mode=mode,
        path=path,
        batch_size=100,
        time_scale=0.02,
        seed=c.options.seed,
        faults=FaultRates(duplicate=0.1, reorder=0.2, drop_reply=0.1, cut=0.1, late=0.1, slow=0.0),
    ) as sync:
        results = sync.run(4)
        problems = [problem for result in results for problem in result.problems]
        if problems:
            raise Failed(problems[0])
        if sync.stats.changes_rejected:
            raise Failed(f"{sync.stats.changes_rejected} users were rejected")
        sent = f"{sync.stats.requests} HTTP requests, {sync.stats.retries} of them retries"
        if c.reader is None:
            return f"{sent}; the state was not compared"
        comparison = compare(sync.expected, c.reader)
        if not comparison.ok:
            examples = "; ".join(map(str, comparison.examples[:3]))
            raise Failed(f"{comparison.wrong} of {comparison.checked} users are wrong: {examples}")
        return f"{sent}; {comparison.checked:,} users compared"
