"""What runs the service's processes: gunicorn's worker, background work, preflight checks."""
