"""The chaos test: `make chaos` runs it in full, tests/system/test_chaos.py briefly.

A misbehaving simulator syncs several cohorts back and forth, while processes are killed, paused and
restarted, memory is filled and connections are broken. Nothing may be lost.
"""
