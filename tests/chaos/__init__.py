"""The proof under faults: `make chaos` runs it whole, tests/system/test_chaos.py in short.

The simulator syncs several cohorts back and forth, misbehaving itself, while processes are killed,
paused and restarted, memory is filled and connections are broken. At the end nothing may be lost.
"""
