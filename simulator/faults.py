"""Misbehaviour on purpose: what a network and a sender under load do to a receiver, drawn from a
seed.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, fields
from typing import Literal

Fault = Literal["drop-reply", "cut", "slow"]


@dataclass(frozen=True)
class Misbehaviour:
    """How often each kind happens, as a share of the requests (0 to 1).

    - `duplicate`: the request is sent twice, at the same time where a thread is free;
    - `reorder`: the request is held back behind up to 16 later ones of the same sync (a webhook
      also behind the next sync, since it carries its time);
    - `drop_reply`: the receiver applies and answers, the sender never hears and sends again;
    - `cut`: the connection is reset half way through the body, then the request is sent again;
    - `slow`: the body takes `slow_seconds`;
    - `late`: the sender doesn't hear (or the body is cut), and its retry arrives only after the
      next sync.
    """

    duplicate: float = 0.0
    reorder: float = 0.0
    drop_reply: float = 0.0
    cut: float = 0.0
    slow: float = 0.0
    late: float = 0.0
    slow_seconds: float = 2.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "slow_seconds" and not 0 <= value <= 1:
                raise ValueError(f"{name.replace('_', '-')} must be between 0 and 1, not {value}")

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in KINDS)

    def on_attempt(self, seed: str, retries_left: int) -> Fault | None:
        """Draw what happens to one attempt; the same for the same seed.

        The last two attempts are left alone, so that misbehaviour alone never makes a request fail
        for good.
        """
        if not (self.drop_reply or self.cut or self.slow) or retries_left < 2:
            return None
        drawn = random.Random(seed).random()
        if drawn < self.drop_reply:
            return "drop-reply"
        if drawn < self.drop_reply + self.cut:
            return "cut"
        if drawn < self.drop_reply + self.cut + self.slow:
            return "slow"
        return None


KINDS = tuple(field.name for field in fields(Misbehaviour) if field.name != "slow_seconds")


def parse(text: str) -> Misbehaviour:
    """Read `all`, `all=0.1` or `late=0.02,drop-reply=0.1,…`; raises `ValueError` that says what is
    wrong.
    """
    rates: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, share = part.partition("=")
        try:
            rate = float(share) if equals else 0.05
        except ValueError:
            raise ValueError(f"{part!r}: {share!r} is not a number") from None
        key = name.strip().replace("-", "_")
        if key == "all":
            rates = dict.fromkeys(KINDS, rate) | rates
        elif key in KINDS or (key == "slow_seconds" and equals):
            rates[key] = rate
        else:
            known = ", ".join(kind.replace("_", "-") for kind in KINDS)
            raise ValueError(f"{name.strip()!r} is none of: all, {known}, slow-seconds=N")
    return Misbehaviour(**rates)
