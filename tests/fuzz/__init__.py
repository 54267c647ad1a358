"""Coverage-guided fuzzing: what no one has thought of, in the body parser and in trait names.

`make fuzz` runs it. What it has found to be different from each other is kept in ``corpus/``, from
where the next run goes on; the ordinary tests look at all of it once.
"""
