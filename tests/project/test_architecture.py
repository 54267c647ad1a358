"""docs/architecture.md is a complete map: it names every folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAP = (ROOT / "docs" / "architecture.md").read_text()
NOT_IN_THE_REPOSITORY = {".git", ".venv", ".cache", "var", "build", "node_modules", "__pycache__"}
MIRRORS = (ROOT / "tests" / "unit", ROOT / "tests" / "integration")


def folders(parent: Path = ROOT) -> Iterator[Path]:
    """All folders of the repository that directly hold files."""
    for folder in sorted(
        path for path in parent.iterdir() if path.is_dir() and not path.is_symlink()
    ):
        is_tool_cache = folder.name.startswith(".") and folder.name != ".ci"
        if folder.name in NOT_IN_THE_REPOSITORY or is_tool_cache or folder.suffix == ".egg-info":
            continue
        if any(path.is_file() for path in folder.iterdir()):
            yield folder
        yield from folders(folder)


def mirrors_a_folder(folder: Path) -> bool:
    return any(
        folder.is_relative_to(tests)
        and any((base / folder.relative_to(tests)).is_dir() for base in (ROOT / "app", ROOT))
        for tests in MIRRORS
    )


def test_map__names_every_folder() -> None:
    named = set(re.findall(r"`([\w./-]+)/`", MAP))
    found = {folder: str(folder.relative_to(ROOT)) for folder in folders()}
    assert len(found) > 40
    unnamed = [name for folder, name in found.items() if name not in named]
    assert not [name for name in unnamed if not mirrors_a_folder(ROOT / name)]
