"""Certify a receiver: check it against Amplitude's documentation, and report the result.

The documentation is Amplitude's page "Receiving Behavioral Cohorts"; docs/protocol.md compares it
with the service.
"""

from .model import CHECKED_MODES, Check, Options, Outcome, Report
from .runner import NothingFound, Unauthorised, WrongPath, run_checks, select_checks

__all__ = [
    "CHECKED_MODES",
    "Check",
    "NothingFound",
    "Options",
    "Outcome",
    "Report",
    "Unauthorised",
    "WrongPath",
    "run_checks",
    "select_checks",
]
