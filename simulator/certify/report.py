"""Render a certification report as text, as JSON, and as one self-contained HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from ..stats import percentile
from .model import CHECKED_MODES, Outcome, Report, Sample, Verdict

_MARKS: dict[Verdict, str] = {"passed": "ok", "failed": "FAIL", "skipped": "skip"}


def line(outcome: Outcome) -> str:
    """Return one check's outcome as text; a failure quotes the requirement."""
    check = outcome.check
    should = " (should)" if check.level == "should" else ""
    text = f"{_MARKS[outcome.verdict]:<5}{check.name}{should}{_seen(outcome)}"
    if outcome.detail:
        text += f": {outcome.detail}"
    if outcome.verdict == "failed":
        text += f"\n     {check.origin}: {check.requirement}"
    return text


def verdict(report: Report) -> str:
    """Return the outcome in a sentence or two."""
    counts, must, should = report.counts(), report.failed("must"), report.failed("should")
    numbers = ", ".join(f"{counts[name]} {name}" for name in _MARKS)
    numbers = f"checks: {counts.total()}, {numbers}"
    if must:
        text = f"NOT CERTIFIED: failed checks of level must: {len(must)} ({numbers})."
    elif not report.certified:
        text = f"NOT CERTIFIED: no check of level must was run ({numbers})."
    else:
        text = f"CERTIFIED{'' if report.compared else ' BY ITS REPLIES ONLY'} ({numbers})."
    if should:
        text += f" Failed checks of level should: {len(should)}."
    if not report.compared:
        text += " A receiver that stores nothing passes too: --reader compares what it stored."
    return text


def latencies(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return count, p50, p99 and maximum (seconds) of successful requests, by mode and size."""
    rows = []
    for mode in CHECKED_MODES:
        for users in sorted({sample.users for sample in samples if sample.mode == mode}):
            values = sorted(s.seconds for s in samples if (s.mode, s.users) == (mode, users))
            rows.append(
                {
                    "mode": mode,
                    "users": users,
                    "successful_requests": len(values),
                    "p50": percentile(values, 0.5),
                    "p99": percentile(values, 0.99),
                    "max": values[-1],
                    "over_1s": sum(value > 1 for value in values),
                    "over_2s": sum(value > 2 for value in values),
                }
            )
    return rows


def as_dict(report: Report) -> dict[str, Any]:
    """Return the report as JSON types; times in seconds."""
    return {
        "url": report.url,
        "started": datetime.fromtimestamp(report.started, UTC).isoformat(timespec="seconds"),
        "seconds": round(report.seconds, 3),
        "seed": report.seed,
        "certified": report.certified,
        "state_compared": report.compared,
        "counts": {name: report.counts()[name] for name in _MARKS},
        "checks": [
            {
                "name": outcome.check.name,
                "level": outcome.check.level,
                "verdict": outcome.verdict,
                "detail": outcome.detail,
                "requirement": outcome.check.requirement,
                "origin": outcome.check.origin,
                "seconds": round(outcome.seconds, 3),
            }
            for outcome in report.outcomes
        ],
        "latencies": latencies(report.samples),
    }


_STYLE = """
:root { color-scheme: light dark; --line: #8884; --property: #3b82f6; --list: #d97706;
  --webhook: #10a37f; --failed: #dc2626; --passed: #16a34a; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto;
  padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem;
  border-bottom: 1px solid var(--line); }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.failed { color: var(--failed); font-weight: 600; }
.passed { color: var(--passed); }
.skipped, small { opacity: .7; }
code { overflow-wrap: anywhere; }
@media (max-width: 48rem) {
  table { display: block; overflow-x: auto; }
  td code { overflow-wrap: normal; }
  td:nth-child(4):last-child { min-width: 14rem; }
}
svg { width: 100%; height: auto; }
svg text { font-size: 12px; fill: currentColor; }
"""


def html(report: Report) -> str:
    """Return the report as one self-contained page with a latency chart."""
    title = f"{'Certified' if report.certified else 'Not certified'}: {report.url}"
    when = datetime.fromtimestamp(report.started, UTC).strftime("%Y-%m-%d %H:%M UTC")
    kind = "passed" if report.certified else "failed"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Amplitude cohort receiver</h1>
<p><code>{escape(report.url)}</code>, {when}, {report.seconds:.1f} s, seed {report.seed}</p>
<p class="{kind}">{escape(verdict(report))}</p>
<h2>Checks</h2>
<table>
<tr><th>Check</th><th>Level</th><th>Outcome</th><th>Requirement</th></tr>
{"".join(map(_check_row, sorted(report.outcomes, key=_failed_first)))}</table>
<h2>Latency</h2>
{_chart(report.samples)}
{_latency_table(report.samples)}
</body>
</html>
"""


def _failed_first(outcome: Outcome) -> bool:
    return outcome.verdict != "failed"


def _check_row(outcome: Outcome) -> str:
    check = outcome.check
    detail = f"<br><small>{escape(outcome.detail)}</small>" if outcome.detail else ""
    return (
        f"<tr><td><code>{escape(check.name)}</code></td><td>{check.level}</td>"
        f'<td><span class="{outcome.verdict}">{outcome.verdict}</span>{_seen(outcome)}{detail}</td>'
        f"<td>{escape(check.requirement)} <small>({check.origin})</small></td></tr>\n"
    )


def _seen(outcome: Outcome) -> str:
    return " (replies only)" if outcome.verdict == "passed" and not outcome.compared else ""


def _latency_table(samples: Sequence[Sample]) -> str:
    rows = "".join(
        f"<tr><td>{row['mode']}</td>"
        + "".join(
            f'<td class="number">{value}</td>'
            for value in (
                f"{row['users']:,}",
                f"{row['successful_requests']:,}",
                f"{row['p50'] * 1000:,.1f}",
                f"{row['p99'] * 1000:,.1f}",
                f"{row['max'] * 1000:,.1f}",
                row["over_1s"],
                row["over_2s"],
            )
        )
        + "</tr>\n"
        for row in latencies(samples)
    )
    return (
        "<table>\n<tr><th>Mode</th><th>Users per request</th><th>Successful requests</th>"
        "<th>p50, ms</th><th>p99, ms</th><th>max, ms</th>"
        "<th>replies over 1 s</th><th>replies over 2 s</th></tr>\n"
        f"{rows}</table>"
    )


_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 900, 330, 68, 46


def _chart(samples: Sequence[Sample]) -> str:
    """Return an SVG scatter chart: latency over users per request, both axes logarithmic."""
    if not samples:
        return "<p>No request was successful.</p>"
    low = min(-3, math.floor(math.log10(max(min(s.seconds for s in samples), 1e-6))))
    high = max(1, math.ceil(math.log10(max(s.seconds for s in samples))))
    wide = max(4.2, math.log10(max(s.users for s in samples)) + 0.2)

    def x(users: float) -> float:
        return _LEFT + (math.log10(users) + 0.2) / (wide + 0.2) * (_WIDTH - _LEFT - 10)

    def y(seconds: float) -> float:
        share = (math.log10(max(seconds, 10.0**low)) - low) / (high - low)
        return (_HEIGHT - _BOTTOM) - share * (_HEIGHT - _BOTTOM - 24)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        'aria-label="Latency by users per request">'
    ]
    for power in range(low, high + 1):
        at, label = y(10.0**power), f"{10.0**power:g} s"
        parts.append(_line(_LEFT, at, _WIDTH, at, "var(--line)"))
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
    for seconds in (1.0, 2.0):
        at = y(seconds)
        parts.append(_line(_LEFT, at, _WIDTH, at, "var(--failed)", dashed=True))
        parts.append(
            f'<text x="{_WIDTH - 4}" y="{at - 4:.1f}" text-anchor="end">{seconds:g} s</text>'
        )
    for users in (1, 10, 100, 1_000, 10_000):
        parts.append(
            f'<text x="{x(users):.1f}" y="{_HEIGHT - 26}" text-anchor="middle">{users:,}</text>'
        )
    for number, sample in enumerate(samples):
        # Spread horizontally, so that dots of the same size don't hide each other.
        at = x(sample.users) + (number * 7 % 41) - 20
        tip = f"{sample.check}: {sample.users:,} users, {sample.seconds * 1000:,.1f} ms"
        parts.append(
            f'<circle cx="{at:.1f}" cy="{y(sample.seconds):.1f}" r="3" fill-opacity=".6" '
            f'fill="var(--{sample.mode})"><title>{escape(tip)}</title></circle>'
        )
    for position, mode in enumerate(CHECKED_MODES):
        at = _LEFT + 10 + position * 90
        parts.append(f'<circle cx="{at}" cy="10" r="4" fill="var(--{mode})"/>')
        parts.append(f'<text x="{at + 9}" y="14">{mode}</text>')
    parts.append(
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 6}" text-anchor="middle">users per request</text>'
    )
    parts.append("</svg>")
    return "\n".join(parts)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dash}/>'
    )
