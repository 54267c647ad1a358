"""Fault injection: what networks and busy senders do to a receiver, drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, fields
from typing import Literal

Fault = Literal["drop-reply", "cut", "slow"]

DEFAULT_RATE = 0.05


@dataclass(frozen=True)
class FaultRates:
    """How often each fault occurs, as a share of the requests (0 to 1).

    - `duplicate`: the request is sent twice, concurrently where a thread is free;
    - `reorder`: the request is sent after up to 16 later ones of its sync; a webhook, which carries
      a time, sometimes during the next sync;
    - `drop_reply`: the receiver replies, but the sender doesn't see it and retries;
    - `cut`: the connection is reset half way through the body, then the request is retried;
    - `slow`: the body takes `slow_seconds` to send;
    - `late`: the reply is dropped or the body cut, and the retry is sent only after the next sync;
      for webhooks, during it.
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
        return any(getattr(self, name) for name in FAULT_KINDS)

    def draw(self, seed: str, retries_left: int) -> Fault | None:
        """Draw the fault of one attempt; the same for the same seed.

        The last two attempts get none, so that faults alone never exhaust the retries.
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


FAULT_KINDS = tuple(field.name for field in fields(FaultRates) if field.name != "slow_seconds")


def parse_faults(text: str) -> FaultRates:
    """Parse `all`, `all=0.1` or `late=0.02,drop-reply=0.1,…`. Raises `ValueError`."""
    rates: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, share = part.partition("=")
        try:
            rate = float(share) if equals else DEFAULT_RATE
        except ValueError:
            raise ValueError(f"{part!r}: {share!r} is not a number") from None
        key = name.strip().replace("-", "_")
        if key == "all":
            rates = dict.fromkeys(FAULT_KINDS, rate) | rates
        elif key in FAULT_KINDS or (key == "slow_seconds" and equals):
            rates[key] = rate
        else:
            known = ", ".join(kind.replace("_", "-") for kind in FAULT_KINDS)
            raise ValueError(f"{name.strip()!r} is none of: all, {known}, slow-seconds=N")
    return FaultRates(**rates)
