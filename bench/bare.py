"""THE BARE FLASK: one route that does one HGETALL and nothing else. The yardstick for reads.

No key, no limit, no log, no metrics, no "since when", no ETag. It runs under the service's own
gunicorn.conf.py, so that the server is the same, and reads the same hashes of the same store.
"""

from __future__ import annotations

import os
from collections import defaultdict

import redis
from flask import Flask, Response, jsonify

PREFIX = os.environ["USER_KEYS"]


class Nothing:
    """Stands where gunicorn.conf.py expects a part of the service that works beside requests."""

    def start(self) -> None:
        """There is no background work."""

    def flush(self) -> None:
        """There are no metrics."""

    def finish(self) -> None:
        """There is no history."""


app = Flask(__name__)
app.extensions = defaultdict(Nothing)
store = redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)


@app.get("/api/v1/users/<user_id>")
def get_user(user_id: str) -> Response:
    return jsonify(store.hgetall(PREFIX + user_id))
