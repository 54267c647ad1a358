"""The program ``cohort-receiver``."""

from __future__ import annotations

from click.testing import CliRunner

from app.__main__ import main


def test_serve__on_a_port_that_does_not_exist__is_wrong_usage() -> None:
    found = CliRunner().invoke(main, ["serve", "--bind", "127.0.0.1:65536"])
    assert found.exit_code == 2
    assert "the port must be at most 65535" in found.output
