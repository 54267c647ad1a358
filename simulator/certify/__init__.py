"""Certify a receiver: check it against Amplitude's document, and report the result."""

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
