"""A follower whose process dies in the handler: `dying_follower.py URL GROUP APP SECONDS`."""

import os
import sys

import redis

from cohort_reader import Follower


def main(url: str, group: str, app: str, seconds: str) -> None:
    client = redis.Redis.from_url(url)
    follower = Follower(client, group, app=app, start="all", handler_seconds=float(seconds))
    follower.run(lambda change: os._exit(9))


if __name__ == "__main__":
    main(*sys.argv[1:])
