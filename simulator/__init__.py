"""Plays Amplitude's side of the protocol: syncs cohorts to a receiver and certifies receivers.

It imports nothing from the receiver, so it works with anyone's.
"""
