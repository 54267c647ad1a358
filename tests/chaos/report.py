"""Render the outcome of runs as a table, for the terminal and docs/reliability.md."""

from __future__ import annotations

from collections.abc import Mapping

from tests.chaos.run import Outcome


def as_markdown(outcomes: list[Outcome]) -> str:
    """The figures of all runs, one column per run."""
    heads = [f"{o.title}, {o.partitions} partition{'s' * (o.partitions > 1)}" for o in outcomes]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(outcomes) + 1) + "|"]

    def row(name: str, values: list[object]) -> None:
        shown = (f"{v:,}" if isinstance(v, int) else str(v) for v in values)
        lines.append(f"| {name} | {' | '.join(shown)} |")

    def rows(tables: list[Mapping[str, int]]) -> None:
        for name in sorted({name for table in tables for name in table}):
            row(name, [table.get(name, 0) for table in tables])

    row("seconds", [round(o.seconds) for o in outcomes])
    row("syncs", [o.syncs for o in outcomes])
    row("requests", [o.requests for o in outcomes])
    row("of which retries", [o.retries for o in outcomes])
    row("without a response", [o.unanswered for o in outcomes])
    rows([{f"status {k}": v for k, v in o.statuses.items()} for o in outcomes])
    row("**injected faults**", [o.faults.total() for o in outcomes])
    rows([o.faults for o in outcomes])
    row("**sender misbehaviour**", [o.misbehaviour.total() for o in outcomes])
    rows([o.misbehaviour for o in outcomes])
    row("**users compared after the syncs**", [o.checked_after_syncs for o in outcomes])
    row("**users compared at the end**", [o.users_checked for o in outcomes])
    row(
        "last 503 after a new primary had a replica, s",
        ["" if o.longest_unavailable is None else f"{o.longest_unavailable:.1f}" for o in outcomes],
    )
    row("lost or wrong", [o.users_wrong for o in outcomes])
    row("transitions in the stream", [o.transitions for o in outcomes])
    row("duplicate transitions", [o.repeated_transitions for o in outcomes])
    row("**result**", ["; ".join(o.wrong) or "nothing lost" for o in outcomes])
    return "\n".join(lines) + "\n"
