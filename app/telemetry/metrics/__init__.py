"""Metrics for Prometheus.

gunicorn's workers share their counts in a folder (``multiprocess_dir``). It must exist and be named
in the environment before ``definitions`` is imported.
"""
