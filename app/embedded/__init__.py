"""``make run``: the service on one machine, together with a store of its own.

Not for production: there, gunicorn runs the service (see the Procfile) with ``REDIS_URL``.
``docs/decisions/embedded-store.md`` says why it works as it does.
"""
