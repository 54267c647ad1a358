"""THE BARE FLASK: one route that does one HGETALL and nothing else. The yardstick for reads.

No key, no limit, no log, no metrics, no "since when", no ETag. It runs under the service's own
gunicorn.conf.py, so that the server is the same, and reads the same hashes of the same store.
"""

from __future__ import annotations

import os
from collections import defaultdict
from unittest.mock import Mock

import redis
from flask import Flask, Response, jsonify

PREFIX = os.environ["USER_KEYS"]

app = Flask(__name__)
# What gunicorn.conf.py asks of the service does nothing here.
app.extensions = defaultdict(Mock)
store = redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)


@app.get("/api/v1/users/<user_id>")
def get_user(user_id: str) -> Response:
    return jsonify(store.hgetall(PREFIX + user_id))
