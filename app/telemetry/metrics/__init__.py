"""What Prometheus is told: the metrics, how they are counted, and what the store is asked for.

gunicorn's workers count together by way of a folder (``folder.py``), which must be there before
the first module that counts is imported.
"""
