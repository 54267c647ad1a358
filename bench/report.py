"""From samples to the table, the bars and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from bench.measure import (
    AFTERNOON,
    SERVICE,
    STORE,
    USUAL_BATCH,
    USUAL_CLIENTS,
    Memory,
    Plan,
    Sample,
)

MANY_CLIENTS = 64


@dataclass(frozen=True)
class Bar:
    """Something that must be reached, and whether it is."""

    name: str
    value: float
    limit: float
    at_least: bool
    unit: str = ""

    @property
    def passed(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        verdict = "pass" if self.passed else "MISS"
        wanted = f"{sign} {self.limit:g}{self.unit}"
        return f"{verdict}  {self.name:<60} {self.value:>8.2f}{self.unit:<4} {wanted}"


def shown(bars: Sequence[Bar]) -> list[str]:
    """The bars as lines of Markdown."""
    return ["```", *map(str, bars), "```"]


class Results:
    """The samples of a run, asked by contestant and load."""

    def __init__(self, plan: Plan, samples: Sequence[Sample], memory: Sequence[Memory]) -> None:
        self.plan, self.samples, self.memory = plan, samples, memory

    def rows(self) -> list[dict[str, Any]]:
        """One row for each load and contestant, in the order they were run: medians of rounds."""
        groups: dict[tuple[int, int, str], list[Sample]] = {}
        for sample in self.samples:
            groups.setdefault((sample.batch, sample.clients, sample.contestant), []).append(sample)
        return [
            {
                "batch": batch,
                "clients": clients,
                "contestant": contestant,
                "rounds": len(group),
                **{
                    name: median(getattr(sample, name) for sample in group)
                    for name in (
                        "users_per_second",
                        "p50_ms",
                        "p99_ms",
                        "cpu_server",
                        "cpu_store",
                        "cpu_load",
                        "store_busy",
                        "others",
                    )
                },
            }
            for (batch, clients, contestant), group in groups.items()
        ]

    def ratio(
        self,
        one: str,
        other: str,
        clients: int,
        batch: int,
        of: Callable[[Sample], float] = lambda sample: sample.users_per_second,
    ) -> float | None:
        """Users a second of one over the other: the median of the rounds' own ratios.

        The two ran one after the other in each round, so what else the machine did at that time
        has slowed both. ``of`` asks for something else than users a second.
        """
        values: dict[tuple[str, int], float] = {
            (sample.contestant, sample.round): of(sample)
            for sample in self.samples
            if (sample.clients, sample.batch) == (clients, batch)
        }
        ratios = [
            value / values[other, number]
            for (name, number), value in values.items()
            if name == one and values.get((other, number))
        ]
        return median(ratios) if ratios else None

    def cpu_ratio(self, one: str, other: str, clients: int, batch: int) -> float | None:
        """CPU seconds per user of server and store, one over the other; less noisy than speed."""
        return self.ratio(
            one, other, clients, batch, of=lambda sample: sample.cpu_server + sample.cpu_store
        )

    def bars(self) -> list[Bar]:
        """The bars that the loads of this run allow to judge."""
        bars = []

        def add(name: str, value: float | None, limit: float, at_least: bool, unit: str) -> None:
            if value is not None:
                bars.append(Bar(name, value, limit, at_least, unit))

        p99 = {
            row["clients"]: row["p99_ms"]
            for row in self.rows()
            if row["contestant"] == SERVICE and row["batch"] == USUAL_BATCH
        }
        for clients in self.plan.clients:
            at = f"batches of {USUAL_BATCH:,}, {clients} clients"
            value = self.ratio(SERVICE, AFTERNOON, clients, USUAL_BATCH)
            add(f"service / afternoon, {at} (aim at 6)", value, 4, True, "x")
            value = self.ratio(SERVICE, STORE, clients, USUAL_BATCH)
            add(f"service / store alone, {at}", value, 0.7, True, "x")
            value = self.ratio(SERVICE, AFTERNOON, clients, 1)
            add(f"service / afternoon, single identifies, {clients} clients", value, 1, True, "x")
        for clients, limit in ((USUAL_CLIENTS, 150), (MANY_CLIENTS, 1000)):
            at = f"batches of {USUAL_BATCH:,}, {clients} clients"
            add(f"p99 of the service, {at}", p99.get(clients), limit, False, " ms")
        for memory in self.memory:
            if memory.contestant == SERVICE:
                name = "store memory per user with one cohort"
                add(name, memory.bytes_per_user, 300, False, " B")
        for name in sorted({sample.contestant for sample in self.samples}):
            if name.startswith(f"{SERVICE}, "):
                value = self.ratio(name, SERVICE, USUAL_CLIENTS, USUAL_BATCH)
                add(f"{name} / {SERVICE}", value, 0.9, True, "x")
        return bars

    def document(self) -> dict[str, Any]:
        """Everything, for a program to read."""
        return {
            "plan": asdict(self.plan),
            "rows": self.rows(),
            "samples": [asdict(sample) for sample in self.samples],
            "memory": {m.contestant: m.bytes_per_user for m in self.memory},
            "bars": [{**asdict(bar), "passed": bar.passed} for bar in self.bars()],
        }

    def text(self) -> str:
        """Everything, for people. The table is Markdown."""
        lines = [
            "| clients | batch | contestant | users/s | p50 ms | p99 ms "
            "| CPU server | CPU store | CPU load | store busy | others |",
            "|--:|--:|:--|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]
        lines += [
            f"| {row['clients']} | {row['batch']:,} | {row['contestant']} "
            f"| {row['users_per_second']:,.0f} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} "
            f"| {row['cpu_server']:.1f} | {row['cpu_store']:.1f} | {row['cpu_load']:.1f} "
            f"| {row['store_busy']:.0%} | {row['others']:.2f} |"
            for row in self.rows()
        ]
        lines += [
            "",
            "CPU is in seconds per million users; others: cores that other processes used. "
            "Medians of the rounds.",
            "",
        ]
        lines.append(
            "| clients | batch | users/s: service / afternoon | users/s: service / store alone "
            "| CPU: afternoon / service |"
        )
        lines.append("|--:|--:|--:|--:|--:|")
        for clients, batch in self.plan.loads(0):
            values = (
                self.ratio(SERVICE, AFTERNOON, clients, batch),
                self.ratio(SERVICE, STORE, clients, batch),
                self.cpu_ratio(AFTERNOON, SERVICE, clients, batch),
            )
            cells = " | ".join("" if value is None else f"{value:.2f}" for value in values)
            lines.append(f"| {clients} | {batch:,} | {cells} |")
        lines += [
            "",
            "The CPU ratio is of what server and store use per user. It changes less than users/s "
            "do where others use the machine too; the bars are judged by users/s.",
        ]
        lines += ["", "| contestant | bytes of store memory per user |", "|:--|--:|"]
        lines += [f"| {m.contestant} | {m.bytes_per_user:.0f} |" for m in self.memory]
        lines += ["", *shown(self.bars())]
        return "\n".join(lines)
