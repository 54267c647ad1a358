"""`make mutants` plants what it should, and recognises what tests make of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.__main__ import run_tests, try_one
from tests.mutants.areas import AREAS, Area
from tests.mutants.lua_mutants import lua_mutants
from tests.mutants.mutant import Mutant
from tests.mutants.python_mutants import python_mutants
from tests.support.effort import thorough

ROOT = Path(__file__).resolve().parents[2]


def planted(mutants: list[Mutant], text: str) -> set[str]:
    return {mutant.planted(text) for mutant in mutants}


def test_areas__name_files_and_tests_that_exist() -> None:
    for area in AREAS.values():
        assert all(any(ROOT.glob(pattern)) for pattern in area.files)
        assert [path for path in area.tests if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("é = a < b", {"é = a <= b"}),
        ("x = a and b or c", {"x = a or b or c", "x = a and b and c"}),
        ("x = not a", {"x = a"}),
        ("x = y + 9", {"x = y - 9", "x = y + (9 + 1)"}),
        ("x = 'a'", {"x = 'aX'"}),
        ("if a:\n    f()", {"if (not (a)):\n    f()", "if a:\n    pass"}),
        ("while True:\n    break", {"while True:\n    continue", "while False:\n    break"}),
        ("def f():\n    '''Doc.'''\n    return x", {"def f():\n    '''Doc.'''\n    return None"}),
        ("def f():\n    return False", {"def f():\n    return True"}),
        ("def f():\n    raise X", {"def f():\n    pass"}),
        ("def f():\n    raise NotImplementedError", set()),
        ("self.x = max(a, b)", {"pass", "self.x = min(a, b)"}),
        ("T = TypeVar('T')", set()),
        ("x = f(a=1, metadata={'b': 2})", {"x = f(a=(1 + 1), metadata={'b': 2})"}),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_python__has_each_kind_of_mistake(text: str, mistakes: set[str]) -> None:
    assert planted(python_mutants("x.py", text), text) == mistakes


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("if a == b then", {"if a ~= b then"}),
        ("x = not a and 'no and' -- a and b", {"x = a and 'no and' -- a and b"}),
        ("  call('DEL', key)", {"  do end", "  call(key, 'DEL')"}),
        ("x = f(a, {b, c})", {"x = f({b, c}, a)"}),
        ("x = 10 - y", {"x = (10 + 1) - y", "x = 10 + y"}),
    ],
)
def test_lua__has_each_kind_of_mistake(text: str, mistakes: set[str]) -> None:
    assert planted(lua_mutants("x.lua", text), text) >= mistakes


@thorough
def test_run__says_whether_the_tests_noticed(tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    copy.mkdir()
    (copy / "made.py").write_text("def f(x):\n    while x > 2:\n        x -= 1\n    return x\n")
    (copy / "test_made.py").write_text("import made\n\ndef test():\n    assert made.f(5) == 2\n")
    area = Area(("made.py",), ("test_made.py",))
    text = (copy / "made.py").read_text()

    def tried(old: str, new: str, longest: float = 60) -> str:
        at = text.index(old)
        return try_one(copy, area, Mutant("made.py", at, at + len(old), new, ""), longest).outcome

    assert run_tests(copy, area.tests, 60).outcome == "survived"
    assert tried("2", "3") == "noticed"
    assert tried("def f", "def g") == "noticed"
    assert tried("def f(x)", "def f(x)") == "survived"
    assert tried("x -= 1", "x += 1", longest=5) == "too slow"
    assert run_tests(copy, ("test_none.py",), 60).outcome == "broken"
    assert (copy / "made.py").read_text() == text
