"""Amplitude's own record: its Behavioral Cohorts API, polled and compared with what arrived."""
