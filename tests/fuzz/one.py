"""``python -m tests.fuzz.one TARGET …``: fuzz one target, with libFuzzer's options."""

from __future__ import annotations

import shlex
import sys

import atheris

with atheris.instrument_imports(include=["app", "marshmallow"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    # libFuzzer restarts itself with this command to merge.
    command = shlex.join([sys.executable, "-m", "tests.fuzz.one", sys.argv[1]])
    atheris.Setup([command, *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
