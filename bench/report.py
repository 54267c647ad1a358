"""Tables, comparisons and verdicts, and where they go in docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median

from bench.plan import AGAINST, Group, Limit
from bench.runner import FIGURES, Sample
from bench.servers import ROOT, running_store

PAGE = ROOT / "docs" / "benchmarks.md"
# What is compared with another checkout.
_COMPARED = ("per_second", "p50_ms", "p99_ms", "max_ms", "cpu_server", "cpu_store")


@dataclass(frozen=True)
class Verdict:
    """A limit, and what was measured."""

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def passed(self) -> bool:
        """False also where the value is not a number."""
        if self.at_least is not None:
            return self.value >= self.at_least
        assert self.at_most is not None
        return self.value <= self.at_most

    def __str__(self) -> str:
        sign, limit = (">=", self.at_least) if self.at_most is None else ("<=", self.at_most)
        return (
            f"{'pass' if self.passed else 'MISS'}  {self.name:<72} {self.value:>12,.2f}"
            f"  {sign} {limit:,g}"
        )


@dataclass(frozen=True)
class Report:
    """What one group found: a text in Markdown, and the verdicts, which it does not include."""

    text: str
    verdicts: Sequence[Verdict]

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in self.verdicts)

    def __str__(self) -> str:
        return "\n".join([self.text, "", "```", *map(str, self.verdicts), "```"])


def report(group: Group, samples: Sequence[Sample]) -> Report:
    """Put the samples of a group together."""
    parts = [_table(group, samples)]
    if any(sample.contestant == AGAINST for sample in samples):
        parts.append(_comparison(group, samples))
    return Report("\n\n".join(parts), [verdict(limit, samples) for limit in group.limits])


def verdict(limit: Limit, samples: Sequence[Sample]) -> Verdict:
    """Judge a limit, by the rounds that have all that it needs."""
    values = _by_round(samples, limit.of, limit.load, limit.figure)
    heading, _ = FIGURES[limit.figure]
    name = f"{limit.load}: {heading}"
    if limit.than:
        name += f", {limit.of} / {limit.than}"
        others = _by_round(samples, *limit.divisor(), limit.figure)
        values = {n: value / others[n] for n, value in values.items() if others.get(n)}
    value = limit.over([*values.values()]) if values else float("nan")
    return Verdict(name, value, limit.at_least, limit.at_most)


def _by_round(
    samples: Sequence[Sample], contestant: str, load: str, figure: str
) -> dict[int, float]:
    return {
        sample.round: sample.figures[figure]
        for sample in samples
        if (sample.contestant, sample.load) == (contestant, load)
    }


def _table(group: Group, samples: Sequence[Sample]) -> str:
    """The median of the rounds, for each load and contestant."""
    rows: dict[tuple[str, str], list[Sample]] = {}
    for load in group.loads:
        for name in dict.fromkeys((load.contestants[0], AGAINST, *load.contestants)):
            found = [s for s in samples if (s.load, s.contestant) == (load.name, name)]
            if found:
                rows[load.name, name] = found
    lines = [
        f"| load | contestant | {' | '.join(FIGURES[column][0] for column in group.columns)} |",
        f"|:--|:--|{'--:|' * len(group.columns)}",
    ]
    for (load_name, name), found in rows.items():
        cells = []
        for column in group.columns:
            values = [s.figures[column] for s in found if column in s.figures]
            cells.append(format(median(values), FIGURES[column][1]) if values else "")
        lines.append(f"| {load_name} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _comparison(group: Group, samples: Sequence[Sample]) -> str:
    """The service divided by the other checkout, round by round."""
    figures = [figure for figure in group.columns if figure in _COMPARED]
    lines = [
        f"| service / against | {' | '.join(FIGURES[figure][0] for figure in figures)} |",
        f"|:--|{'--:|' * len(figures)}",
    ]
    for load in group.loads:
        cells = []
        for figure in figures:
            ratio = verdict(Limit(load.name, figure, at_least=0, than=AGAINST), samples)
            cells.append(f"{ratio.value:.2f}")
        lines.append(f"| {load.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(name: str, text: str) -> None:
    """Replace the figures of a group in docs/benchmarks.md."""
    page = PAGE.read_text()
    begin, end = f"<!-- {name}: measured -->", f"<!-- {name}: end -->"
    before, found, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise ValueError(f"{PAGE.name} has no section {name}")
    PAGE.write_text(f"{before}{begin}\n\n{setting()}\n\n{text}\n\n{end}{after}")


def setting() -> str:
    """Where and when it was measured, in one sentence."""
    with running_store() as store:
        server = store.client.info("server")
    name = "Valkey" if "valkey_version" in server else "Redis"
    version = server.get("valkey_version", server["redis_version"])
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d}, on {os.cpu_count()} cores that the service, "
        f"its store and the load generator share; Python {platform.python_version()}, "
        f"{name} {version} with an append-only file."
    )
