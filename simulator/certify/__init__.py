"""Certify a receiver: check by check what Amplitude's document requires, and a report."""

from .model import CHECKED_MODES, Check, Options, Outcome, Report
from .runner import Unauthorised, run_checks, select_checks

__all__ = [
    "CHECKED_MODES",
    "Check",
    "Options",
    "Outcome",
    "Report",
    "Unauthorised",
    "run_checks",
    "select_checks",
]
