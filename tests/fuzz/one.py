"""``python -m tests.fuzz.one TARGET …``: run the fuzzer on one target, with libFuzzer's options."""

from __future__ import annotations

import shlex
import sys

import atheris

with atheris.instrument_imports(include=["app", "marshmallow"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    # To merge, libFuzzer starts itself again, by this command.
    command = shlex.join([sys.executable, "-m", "tests.fuzz.one", sys.argv[1]])
    atheris.Setup([command, *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
