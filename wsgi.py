"""The service, for gunicorn: ``gunicorn wsgi:app``. Its configuration is gunicorn.conf.py."""

from app import create_app

app = create_app()
