"""The read and admin API."""
