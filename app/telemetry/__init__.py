"""What the service reports of itself: logs, metrics, errors, and each request as an event."""
