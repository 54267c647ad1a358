"""Run each input of the fuzzer's corpus once, without the fuzzer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.fuzz.__main__ import main
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).resolve().parents[3] / "fuzz" / "corpus"
INPUTS = sorted(CORPUS.rglob("*/*"))


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_corpus__each_input__breaks_nothing(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


def test_corpus__of_each_target__exists_and_is_small() -> None:
    assert {path.parent.name for path in INPUTS} == set(TARGETS)
    assert sum(path.stat().st_size for path in INPUTS) < 1 << 20


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)], ids=["in CI", "elsewhere"])
def test_fuzz__without_the_fuzzer__fails_in_ci_only(
    monkeypatch: pytest.MonkeyPatch, ci: str, code: int
) -> None:
    monkeypatch.setitem(sys.modules, "atheris", None)
    monkeypatch.setenv("CI", ci)
    assert main([]) == code
