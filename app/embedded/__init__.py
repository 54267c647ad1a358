"""``make run``: the service on one machine, with a store of its own. Not for production.

``docs/decisions/embedded-store.md`` lists its guarantees and the reasons.
"""

from __future__ import annotations


class CannotRun(Exception):
    """The service cannot start or continue. The message says why and what to do."""
