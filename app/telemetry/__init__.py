"""Logs, metrics, error reports and the sync history."""
