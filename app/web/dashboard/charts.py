"""Charts, as the paths and bars of inline SVG. Sizes are steps: each holds until the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from app.cohorts import Sync
from app.store import Size

# Units of the drawings; the pages stretch them to the room that there is.
WIDTH, HEIGHT = 1000, 100
# A bar that is so many times as long as the next longest is cut off.
_FAR = 4
# Bars of fewer syncs are no wider than these.
_FEW_BARS = 12
# Syncs that the chart of who entered and left shows.
MOST_BARS = 40


class Line(NamedTuple):
    """A cohort's size over time.

    Attributes:
        path: the line; ``area`` is what lies below it.
        low, high: the numbers at the bottom and the top.
        began_ms, ended_ms: the times at the left and the right.
        first, last: the first and the last size.
    """

    path: str
    area: str
    low: int
    high: int
    began_ms: int
    ended_ms: int
    first: int
    last: int


class Bar(NamedTuple):
    """Who entered and left in one sync: from the top down ``x, width, y, height`` of each."""

    sync: Sync
    x: float
    width: float
    entered_y: float
    entered_height: float
    left_y: float
    left_height: float


class Bars(NamedTuple):
    """Who entered and left in the latest syncs, oldest first.

    Attributes:
        middle: where the bars begin: those who entered go up from there, those who left down.
        most_entered, most_left: the numbers at the top and the bottom. A bar that is much longer
            than the others, as the first sync's is, is cut off there.
    """

    bars: list[Bar]
    middle: float
    most_entered: int
    most_left: int

    @property
    def is_cut(self) -> bool:
        return any(
            bar.sync.entered > self.most_entered or bar.sync.left > self.most_left
            for bar in self.bars
        )


def line(sizes: Sequence[Size], now_ms: int, *, from_zero: bool = False) -> Line | None:
    """The chart of a cohort's size; None while there is nothing to draw."""
    if not sizes:
        return None
    began, ended = sizes[0].at_ms, max(now_ms, sizes[-1].at_ms + 1)
    low = 0 if from_zero else min(size.members for size in sizes)
    high = max(size.members for size in sizes)
    room = (high - low) or 1

    def x(at_ms: int) -> float:
        return round((at_ms - began) / (ended - began) * WIDTH, 1)

    def y(members: int) -> float:
        # A line that never moves is in the middle, not at the edge.
        share = 0.5 if high == low else (members - low) / room
        return round(HEIGHT * (1 - share), 1)

    points = [f"M0 {y(sizes[0].members)}"]
    for size in sizes[1:]:
        points.append(f"H{x(size.at_ms)}V{y(size.members)}")
    path = "".join(points) + f"H{WIDTH}"
    area = f"{path}V{HEIGHT}H0Z"
    first, last = sizes[0].members, sizes[-1].members
    return Line(path, area, low, high, began, ended, first, last)


def bars(syncs: Sequence[Sync]) -> Bars | None:
    """The chart of who entered and left; None where nobody did."""
    shown = list(reversed(syncs[:MOST_BARS]))
    most_entered = _most([sync.entered for sync in shown])
    most_left = _most([sync.left for sync in shown])
    if not most_entered + most_left:
        return None
    scale = HEIGHT / (most_entered + most_left)
    middle = most_entered * scale
    width = WIDTH / max(len(shown), _FEW_BARS) * 0.7
    # From one end of the time below them to the other.
    step = (WIDTH - width) / max(len(shown) - 1, 1)
    drawn = []
    for place, sync in enumerate(shown):
        up = _height(min(sync.entered, most_entered), scale)
        down = _height(min(sync.left, most_left), scale)
        drawn.append(
            Bar(
                sync,
                round(place * step, 1),
                round(width, 1),
                round(middle - up, 1),
                up,
                round(middle, 1),
                down,
            )
        )
    return Bars(drawn, round(middle, 1), most_entered, most_left)


def _most(users: Sequence[int]) -> int:
    """The end of the scale: the most, unless that is far above all others."""
    *_, second, most = sorted([0, 0, *users])
    return second * 5 // 4 if 0 < second * _FAR < most else most


def _height(users: int, scale: float) -> float:
    """A bar's height: of few users among many, still one that can be seen."""
    return max(round(users * scale, 1), 1.5) if users else 0.0
