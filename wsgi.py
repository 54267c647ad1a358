"""The service, for gunicorn and flask: ``gunicorn wsgi:app``, ``flask --app wsgi …``.

gunicorn's configuration is gunicorn.conf.py; the commands are in docs/cli.md.
"""

import sys

from app import create_app
from app.settings import BadSettings

try:
    app = create_app()
except BadSettings as error:
    sys.exit("\n".join(f"cohort-receiver: {line}" for line in str(error).splitlines()))
