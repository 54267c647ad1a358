"""Plays Amplitude's side of the protocol: syncs cohorts to a receiver and certifies receivers.

It imports nothing from Cohort Receiver, so it works with any receiver.
"""
