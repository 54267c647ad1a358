"""Certifies a receiver: named checks of what Amplitude's document asks of it, and a report."""

from .runner import Check, Context, Options, Outcome, Report, Unauthorised, certify

__all__ = ["Check", "Context", "Options", "Outcome", "Report", "Unauthorised", "certify"]
