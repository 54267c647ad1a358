"""The sources of cohort changes: identify, list, webhook and segment."""
