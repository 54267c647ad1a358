"""gunicorn's worker and hooks, background work, and the check before the start."""
