"""What a check has to work with, and the run over all of them."""

from __future__ import annotations

import fnmatch
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .. import payloads
from ..encode import to_json
from ..reader import Reader, ReaderError, Traits
from ..stats import short
from ..truth import say
from ..wire import WEBHOOK_USER_AGENT, Auth, Reply, Target, Wire, describe

Way = Literal["property", "list", "webhook"]
WAYS: tuple[Way, ...] = ("property", "list", "webhook")
Level = Literal["must", "should"]
Source = Literal["document", "known"]
Verdict = Literal["passed", "failed", "skipped"]


# How long a receiver may go on throttling one request, and how long to wait where it doesn't say.
PATIENCE = 30.0
THROTTLED_WAIT = 0.5


class Failed(Exception):
    """The receiver does not do what it must; the text says what it did instead."""


class Skipped(Exception):
    """The check can't be made here; the text says what it would take."""


class Unauthorised(Exception):
    """The receiver refuses the key that it is to be certified with."""


@dataclass(frozen=True)
class Options:
    """What is to be certified, and what the receiver is told that only its owner knows."""

    target: Target
    path: str = payloads.COHORT_PATH
    lists_path: str = payloads.LISTS_PATH
    webhook_path: str = payloads.WEBHOOK_PATH
    ways: Sequence[Way] = WAYS
    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    invalid_user: str | None = None
    throttle: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Check:
    """One thing that a receiver must (or should) do. `says` is what the source has about it."""

    name: str
    way: Way | None
    level: Level
    source: Source
    says: str
    run: Callable[[Context], str | None] = field(repr=False)


@dataclass(frozen=True)
class Outcome:
    """What became of a check."""

    check: Check
    verdict: Verdict
    detail: str
    seconds: float


@dataclass(frozen=True)
class Sample:
    """The latency of one answer, in seconds."""

    check: str
    way: Way
    users: int
    seconds: float


@dataclass
class Report:
    """The outcome of a run."""

    url: str
    seed: int
    compared: bool
    started: float
    seconds: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def failed(self, level: Level) -> list[Outcome]:
        """Return the failed checks of a level."""
        return [o for o in self.outcomes if o.verdict == "failed" and o.check.level == level]

    @property
    def certified(self) -> bool:
        """Whether every `must` that could be checked holds, and there was one."""
        passed = any(o.verdict == "passed" and o.check.level == "must" for o in self.outcomes)
        return passed and not self.failed("must")

    def counts(self) -> Counter[str]:
        """Return how many checks passed, failed and were skipped."""
        return Counter(outcome.verdict for outcome in self.outcomes)


class Context:
    """Calls to the receiver, and a look at its state where there is a reader.

    Every check has users and cohorts of its own, so that the checks don't depend on each other.
    """

    def __init__(self, options: Options, reader: Reader | None, samples: list[Sample]) -> None:
        self.options = options
        self.reader = reader
        self._samples = samples
        self._check = ""
        self._random = random.Random()
        self._wires: list[tuple[Target, Wire]] = []

    def begin(self, check: str) -> None:
        """Start a check: draw its users and cohorts from the seed and its name."""
        self._check = check
        self._random = random.Random(f"certify {self.options.seed} {check}")

    def close(self) -> None:
        """Close the connections."""
        for _, wire in self._wires:
            wire.close()

    def users(self, count: int) -> list[str]:
        """Draw user ids that no other check uses."""
        return payloads.user_ids(count, self._random.getrandbits(64))

    def cohort(self, name: str = "Certify") -> tuple[str, str]:
        """Draw a cohort that no other check uses: (its name, its id)."""
        return name, f"{self._random.getrandbits(40):010x}"

    def trait(self, name: str = "Certify") -> str:
        """Draw the trait of a cohort that no other check uses."""
        return payloads.trait_name(*self.cohort(name))

    def message_id(self, member: bool = True) -> str:
        """Draw a webhook's message id."""
        return payloads.message_id(self._random, member)

    def target(self, auth: Auth | None = None, key: str | None = None) -> Target:
        """Return the receiver, called with other credentials."""
        target = self.options.target
        headers = dict(target.extra_headers)
        if auth is not None or key is not None:
            headers = {}  # they may hold credentials of their own
        return replace(
            target,
            auth=auth or target.auth,
            key=target.key if key is None else key,
            extra_headers=headers,
        )

    def post(
        self,
        path: str,
        body: Any,
        *,
        target: Target | None = None,
        headers: Mapping[str, str] | None = None,
        patient: bool = True,
    ) -> Reply:
        """Send a payload (or bytes as they are) and note how long the answer took.

        A 429 is waited out, unless not `patient` (see `patiently`).
        """
        wire = self._wire(target or self.options.target)
        raw = body if isinstance(body, bytes) else to_json(body)
        if path == self.options.webhook_path:
            headers = {"User-Agent": WEBHOOK_USER_AGENT, **(headers or {})}
        reply = self.patiently(lambda: wire.post(path, raw, headers), patient)
        if reply.ok:
            self._note(path, body, reply)
        return reply

    def at_once(self, calls: Sequence[tuple[str, Any]], *, patient: bool = True) -> list[Reply]:
        """Send all of them at the same time, each on a connection of its own."""

        def one(call: tuple[str, Any]) -> Reply:
            wire = Wire(self.options.target)
            try:
                raw = to_json(call[1])
                reply = self.patiently(lambda: wire.post(call[0], raw), patient)
            finally:
                wire.close()
            if reply.ok:
                self._note(*call, reply)
            return reply

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(one, calls))

    def patiently(self, send: Callable[[], Reply], patient: bool = True) -> Reply:
        """Send, and as Amplitude does again after a 429, for up to 30 s: throttling isn't wrong."""
        until = time.monotonic() + (PATIENCE if patient else 0)
        while (reply := send()).status == 429:
            wait = THROTTLED_WAIT if reply.retry_after is None else max(reply.retry_after, 0.05)
            if time.monotonic() + wait > until:
                break
            time.sleep(wait)
        return reply

    @contextmanager
    def wire(self) -> Iterator[Wire]:
        """Open a connection to misbehave on."""
        wire = Wire(self.options.target)
        try:
            yield wire
        finally:
            wire.close()

    def identify(self, body: Any, **options: Any) -> Reply:
        """Send an identify or a batch."""
        return self.post(self.options.path, body, **options)

    def webhook(self, body: Any, **options: Any) -> Reply:
        """Send a cohort webhook."""
        return self.post(self.options.webhook_path, body, **options)

    def holds(self, trait: str, expected: Mapping[str, bool | None]) -> None:
        """Fail unless each user's trait has the expected value (None: no such field)."""
        if self.reader is None:
            return
        users = list(expected)
        for user, traits in zip(users, self._traits(users), strict=True):
            value = traits.get(trait)
            if value is not expected[user]:
                raise Failed(
                    f"user {user!r}, trait {trait!r}: expected {say(expected[user])}, "
                    f"found {say(value)}" + (f"; the user has {traits!r}" if traits else "")
                )

    def has_exactly(self, user: str, expected: Traits) -> None:
        """Fail unless the user has these traits and no other."""
        if self.reader is not None and (found := self._traits([user])[0]) != expected:
            raise Failed(f"user {user!r}: expected {expected!r}, found {found!r}")

    def _traits(self, users: Sequence[str]) -> list[Traits]:
        assert self.reader is not None
        return [
            traits
            for start in range(0, len(users), 1_000)
            for traits in self.reader.traits(users[start : start + 1_000])
        ]

    def _wire(self, target: Target) -> Wire:
        for known, wire in self._wires:
            if known == target:
                return wire
        wire = Wire(target)
        self._wires.append((target, wire))
        return wire

    def _note(self, path: str, body: Any, reply: Reply) -> None:
        users = payloads.count_users(body)
        self._samples.append(Sample(self._check, self._way(path), users, reply.seconds))

    def _way(self, path: str) -> Way:
        if path == self.options.webhook_path:
            return "webhook"
        return "list" if path.startswith(self.options.lists_path) else "property"


def need(reply: Reply, *statuses: int, what: str = "") -> Reply:
    """Fail unless the answer has one of the statuses."""
    if reply.status not in statuses:
        wanted = " or ".join(map(str, statuses))
        got = str(reply) + (f" {short(reply.body, 160)}" if reply.body else "")
        raise Failed(f"{what + ': ' if what else ''}expected {wanted}, got {got}")
    return reply


def certify(
    options: Options,
    checks: Sequence[Check],
    reader: Reader | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> Report:
    """Make the checks, one after the other, and return the report.

    Raises `Unauthorised` when the receiver doesn't take the key at all, and `ReaderError`.
    """
    report = Report(options.target.url, options.seed, reader is not None, time.time())
    started = time.perf_counter()
    context = Context(options, reader, report.samples)
    try:
        _present_the_key(context)
        report.samples.clear()
        for check in chosen(checks, options):
            outcome = _make(check, context)
            report.outcomes.append(outcome)
            if on_outcome:
                on_outcome(outcome)
    finally:
        context.close()
        report.seconds = time.perf_counter() - started
    return report


def chosen(checks: Sequence[Check], options: Options) -> list[Check]:
    """Return the checks that the options ask for."""

    def matches(check: Check, patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(check.name, pattern) for pattern in patterns)

    return [
        check
        for check in checks
        if (check.way is None or check.way in options.ways)
        and (not options.only or matches(check, options.only))
        and not matches(check, options.skip)
    ]


def _make(check: Check, context: Context) -> Outcome:
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
    except Exception as error:  # noqa: BLE001 - whatever an answer can do to a check
        verdict, detail = "failed", describe(error)
    return Outcome(check, verdict, detail, time.perf_counter() - started)


def _present_the_key(context: Context) -> None:
    context.begin("the key")
    user, (name, cohort_id) = context.users(1), context.cohort()
    if "property" in context.options.ways:
        trait = payloads.trait_name(name, cohort_id)
        reply = context.identify(payloads.identify(user[0], trait, True))
    elif "list" in context.options.ways:
        trait = payloads.trait_name(name, cohort_id)
        reply = context.post(context.options.lists_path, payloads.list_create(trait))
    else:
        reply = context.webhook(
            payloads.webhook(
                name,
                cohort_id,
                user,
                True,
                computed_time=int(time.time()),
                message_id=context.message_id(),
            )
        )
    if reply.status in (401, 403):
        raise Unauthorised(f"{reply.status} {short(reply.body)}")
