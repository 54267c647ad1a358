"""THE AFTERNOON VERSION: what anyone would write first. The benchmark's yardstick, not for use.

One Flask file, marshmallow's nested schema, a pipeline of HSET, gunicorn's default workers. It is
written as well as its approach allows. It keeps no index of members and no change stream.

The schema types down what Amplitude's docs print, object by object, ``context`` included: that
is how marshmallow is meant to be used. It takes a good part of the time. A version that takes
``context`` for any object would be faster, and would check less.
"""

from __future__ import annotations

import hmac
import os

import redis
from flask import Flask, Response, jsonify, request
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate
from werkzeug.exceptions import HTTPException

API_KEY = os.environ["API_KEY"]

app = Flask(__name__)
store = redis.Redis.from_url(os.environ["REDIS_URL"])


class IntegrationSchema(Schema):
    class Meta:
        unknown = EXCLUDE

    name = fields.String()
    version = fields.String()


class ContextSchema(Schema):
    class Meta:
        unknown = EXCLUDE

    integration = fields.Nested(IntegrationSchema)


class IdentifySchema(Schema):
    class Meta:
        unknown = EXCLUDE

    type = fields.String(required=True, validate=validate.Equal("identify"))
    user_id = fields.String(data_key="userId", required=True, validate=validate.Length(min=1))
    traits = fields.Dict(keys=fields.String(), values=fields.Boolean(), required=True)
    context = fields.Nested(ContextSchema)


class BatchSchema(Schema):
    class Meta:
        unknown = EXCLUDE

    batch = fields.Nested(IdentifySchema, many=True, required=True)


identify_schema = IdentifySchema()
batch_schema = BatchSchema()


@app.post("/api/v1/integration/amplitude/cohort")
def receive_cohort() -> tuple[Response, int]:
    auth = request.authorization
    if auth is None or not hmac.compare_digest(auth.username or "", API_KEY):
        return jsonify(error="unauthorized"), 401
    try:
        body = request.get_json()
        if "batch" in body:
            calls = batch_schema.load(body)["batch"]
        else:
            calls = [identify_schema.load(body)]
    except ValidationError as error:
        return jsonify(error=error.messages), 400
    except HTTPException:
        return jsonify(error="invalid JSON"), 400
    pipe = store.pipeline(transaction=False)
    for call in calls:
        traits = {name: "true" if value else "false" for name, value in call["traits"].items()}
        pipe.hset(f"user:{call['user_id']}", mapping=traits)
    pipe.execute()
    return jsonify(accepted=len(calls)), 200
