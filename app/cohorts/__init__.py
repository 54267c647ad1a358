"""What a cohort and a change of its membership are. Pure Python: no Flask, no Redis."""

from app.cohorts.changes import Identify, MembershipChange, membership_changes
from app.cohorts.cohort import Cohort

__all__ = ["Cohort", "Identify", "MembershipChange", "membership_changes"]
