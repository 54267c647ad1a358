"""What stops a run."""

from __future__ import annotations


class CannotRun(Exception):
    """The service can't start, or can't go on. The message is for people: what and what to do."""
