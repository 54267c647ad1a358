"""THE BARE VIEW: one route that does one HGETALL and nothing else. The yardstick for reads.

No key, limit, log, metrics, "since when" or ETag. ``bare_gunicorn.py`` runs it.
"""

from __future__ import annotations

import gc
import os

import redis
from flask import Flask, Response, jsonify

PREFIX = os.environ["USER_KEYS"]

app = Flask(__name__)
store = redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)
# As the service's workers do.
gc.collect()
gc.freeze()
gc.set_threshold(50_000, 20, 20)


@app.get("/api/v1/users/<user_id>")
def get_user(user_id: str) -> Response:
    return jsonify(store.hgetall(PREFIX + user_id))
