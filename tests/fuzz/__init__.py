"""Coverage-guided fuzzing of the body parser and of trait names.

`make fuzz` runs it. Inputs that reach new code are kept in ``corpus/``, where the next run starts;
the ordinary test suite runs each of them once.
"""
