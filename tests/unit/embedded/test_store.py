"""The store of ``make run`` on a machine that cannot run it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from app.embedded import CannotRun
from app.embedded.data_dir import DataDir
from app.embedded.store import EmbeddedStore


@pytest.mark.parametrize("content", [None, b"", b"#!/no/such/loader\n"])
def test_start__server_that_cannot_be_executed__says_to_set_redis_url(
    content: bytes | None,
) -> None:
    with tempfile.TemporaryDirectory(prefix="store-") as folder:
        data = DataDir(Path(folder))
        data.create()
        program = data.path / "valkey-server"
        if content is not None:
            program.write_bytes(content)
            program.chmod(0o700)
        with open(data.path / "run.lock", "w") as lock:
            store = EmbeddedStore(data, lock.fileno(), program)
            with pytest.raises(CannotRun) as error:
                store.start()
            store.stop()
    assert str(error.value).startswith("Cannot run the bundled Valkey server: ")
    assert "Set REDIS_URL to " in str(error.value)
    assert "\n" not in str(error.value)
