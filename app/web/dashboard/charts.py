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
# With fewer bars than this, each is as wide as if there were this many.
_MIN_BARS = 12
MAX_BARS = 40
# Maximum numbers of intervals on the vertical and the horizontal axis.
_STEPS, _TIMES = 4, 3


class Tick(NamedTuple):
    """A value on the vertical axis, and where it is, from 0 at the top to HEIGHT."""

    value: int
    y: float


class Line(NamedTuple):
    """A cohort's size over time, from 0 at the bottom.

    Attributes:
        path, area: SVG paths of the line and of the area below it.
        high: the greatest value.
        ticks: of the vertical axis, from the top.
        times_ms: on the horizontal axis, at equal distances from its left to its right end.
        points: the horizontal position of each size.
        first, last: the first and the last size.
    """

    path: str
    area: str
    high: int
    ticks: list[Tick]
    times_ms: list[int]
    points: list[tuple[float, Size]]
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
        ticks: of the vertical axis, from the top; negative for users who left.
        most_entered, most_left: the values at the top and the bottom. A bar that is much longer
            than the others, such as the first sync's, is clipped there.
    """

    bars: list[Bar]
    middle: float
    ticks: list[Tick]
    most_entered: int
    most_left: int

    @property
    def shown_ms(self) -> list[int]:
        """The times of the first, the middle and the last bar, where they differ."""
        times = [bar.sync.began_ms for bar in self.bars]
        if len(times) % 2 and len(times) > 2:
            return [times[0], times[len(times) // 2], times[-1]]
        return [times[0], times[-1]] if len(times) > 1 else times

    @property
    def clipped(self) -> list[Sync]:
        """The syncs with a clipped bar."""
        return [
            bar.sync
            for bar in self.bars
            if bar.sync.entered > self.most_entered or bar.sync.left > self.most_left
        ]


def line(sizes: Sequence[Size], now_ms: int) -> Line | None:
    """The chart of a cohort's size; None if no size is recorded."""
    if not sizes:
        return None
    began, ended = sizes[0].at_ms, max(now_ms, sizes[-1].at_ms + 1)
    high = max(size.members for size in sizes)
    step = _step(high)
    top = max(-(-high // step) * step, step)

    def x(at_ms: int) -> float:
        return round((at_ms - began) / (ended - began) * WIDTH, 1)

    def y(members: int) -> float:
        return round(HEIGHT * (1 - members / top), 1)

    steps = [f"M0 {y(sizes[0].members)}"]
    for size in sizes[1:]:
        steps.append(f"H{x(size.at_ms)}V{y(size.members)}")
    path = "".join(steps) + f"H{WIDTH}"
    area = f"{path}V{HEIGHT}H0Z"
    first, last = sizes[0].members, sizes[-1].members
    ticks = [Tick(value, y(value)) for value in range(top, -1, -step)]
    intervals = min(_TIMES, max(1, (ended - began) // 60_000))  # labels have minutes
    times = [began + (ended - began) * n // intervals for n in range(intervals + 1)]
    points = [(x(size.at_ms), size) for size in sizes]
    return Line(path, area, high, ticks, times, points, first, last)


def bars(syncs: Sequence[Sync]) -> Bars | None:
    """The chart of users who entered and left; None if nobody did."""
    shown = list(reversed(syncs[:MAX_BARS]))
    most_entered = _scale_end([sync.entered for sync in shown])
    most_left = _scale_end([sync.left for sync in shown])
    if not most_entered + most_left:
        return None
    step = _step(most_entered + most_left)
    most_entered = -(-most_entered // step) * step
    most_left = -(-most_left // step) * step
    scale = HEIGHT / (most_entered + most_left)
    middle = most_entered * scale
    width = WIDTH / max(len(shown), _MIN_BARS) * 0.7
    # The first bar starts at the left edge, and the last ends at the right edge.
    distance = (WIDTH - width) / max(len(shown) - 1, 1)
    drawn = []
    for index, sync in enumerate(shown):
        up = _height(min(sync.entered, most_entered), scale)
        down = _height(min(sync.left, most_left), scale)
        drawn.append(
            Bar(
                sync,
                round(index * distance, 1),
                round(width, 1),
                round(middle - up, 1),
                up,
                round(middle, 1),
                down,
            )
        )
    ticks = [
        Tick(value, round(middle - value * scale, 1))
        for value in range(most_entered, -most_left - 1, -step)
    ]
    return Bars(drawn, round(middle, 1), ticks, most_entered, most_left)


def _step(values: int) -> int:
    """A round distance of ticks (1, 2 or 5 times a power of ten) for about four of them."""
    step = 1
    while True:
        for factor in (1, 2, 5):
            if step * factor * _STEPS >= values:
                return step * factor
        step *= 10


def _scale_end(users: Sequence[int]) -> int:
    """The largest value, or a little above the second largest if the largest is far above it."""
    *_, second, most = sorted([0, 0, *users])
    return second * 5 // 4 if 0 < second * _CLIP_RATIO < most else most


def _height(users: int, scale: float) -> float:
    """A bar's height; at least 1.5, so that a few users among many remain visible."""
    return max(round(users * scale, 1), 1.5) if users else 0.0
