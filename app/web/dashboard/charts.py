"""Charts as inline SVG. A cohort's size is a step function: each value holds until the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from app.cohorts import Sync
from app.store import Size

# SVG user units; the pages stretch the drawings to the available width.
WIDTH, HEIGHT = 1000, 100
# A bar is clipped if it is this many times as long as the second longest.
_CLIP_RATIO = 4
# A few bars are drawn no wider than if there were this many.
_MIN_BARS = 12
MAX_BARS = 40


class Line(NamedTuple):
    """A cohort's size over time.

    Attributes:
        path, area: SVG paths of the line and of the area below it.
        low, high: the values at the bottom and the top.
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
    """The rectangles of one sync: users who entered above the zero line, users who left below."""

    sync: Sync
    x: float
    width: float
    entered_y: float
    entered_height: float
    left_y: float
    left_height: float


class Bars(NamedTuple):
    """Users who entered and left in the latest syncs, oldest first.

    Attributes:
        middle: the zero line.
        most_entered, most_left: the values at the top and the bottom. A bar that is much longer
            than the others, such as the first sync's, is clipped there.
    """

    bars: list[Bar]
    middle: float
    most_entered: int
    most_left: int

    @property
    def is_clipped(self) -> bool:
        return any(
            bar.sync.entered > self.most_entered or bar.sync.left > self.most_left
            for bar in self.bars
        )


def line(sizes: Sequence[Size], now_ms: int, *, from_zero: bool = False) -> Line | None:
    """The chart of a cohort's size; None if no size is recorded."""
    if not sizes:
        return None
    began, ended = sizes[0].at_ms, max(now_ms, sizes[-1].at_ms + 1)
    low = 0 if from_zero else min(size.members for size in sizes)
    high = max(size.members for size in sizes)
    height = (high - low) or 1

    def x(at_ms: int) -> float:
        return round((at_ms - began) / (ended - began) * WIDTH, 1)

    def y(members: int) -> float:
        # A constant size is drawn in the middle, not at the edge.
        share = 0.5 if high == low else (members - low) / height
        return round(HEIGHT * (1 - share), 1)

    points = [f"M0 {y(sizes[0].members)}"]
    for size in sizes[1:]:
        points.append(f"H{x(size.at_ms)}V{y(size.members)}")
    path = "".join(points) + f"H{WIDTH}"
    area = f"{path}V{HEIGHT}H0Z"
    first, last = sizes[0].members, sizes[-1].members
    return Line(path, area, low, high, began, ended, first, last)


def bars(syncs: Sequence[Sync]) -> Bars | None:
    """The chart of users who entered and left; None if nobody did."""
    shown = list(reversed(syncs[:MAX_BARS]))
    most_entered = _scale_end([sync.entered for sync in shown])
    most_left = _scale_end([sync.left for sync in shown])
    if not most_entered + most_left:
        return None
    scale = HEIGHT / (most_entered + most_left)
    middle = most_entered * scale
    width = WIDTH / max(len(shown), _MIN_BARS) * 0.7
    # The first bar starts at the left edge, and the last ends at the right edge.
    step = (WIDTH - width) / max(len(shown) - 1, 1)
    drawn = []
    for index, sync in enumerate(shown):
        up = _height(min(sync.entered, most_entered), scale)
        down = _height(min(sync.left, most_left), scale)
        drawn.append(
            Bar(
                sync,
                round(index * step, 1),
                round(width, 1),
                round(middle - up, 1),
                up,
                round(middle, 1),
                down,
            )
        )
    return Bars(drawn, round(middle, 1), most_entered, most_left)


def _scale_end(users: Sequence[int]) -> int:
    """The largest value, or a little above the second largest if the largest is far above it."""
    *_, second, most = sorted([0, 0, *users])
    return second * 5 // 4 if 0 < second * _CLIP_RATIO < most else most


def _height(users: int, scale: float) -> float:
    """A bar's height; at least 1.5, so that a few users among many remain visible."""
    return max(round(users * scale, 1), 1.5) if users else 0.0
