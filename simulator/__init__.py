"""Amplitude's side of the wire: sends cohorts as Amplitude does and certifies receivers.

Imports nothing of the receiver, so that it can be pointed at anyone's.
"""
