"""Files as Amplitude exports them, and files that are broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.upstream.errors import UpstreamFileInvalid
from app.upstream.export_file import Contents, ExportFile

HEADER = '"amplitude_id","user_id"\n'


def read(folder: Path, text: str | bytes, column: str = "user_id") -> tuple[Contents, list[str]]:
    path = folder / "file.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    file = ExportFile(path, column)
    return file.scan(), list(file.user_ids())


@pytest.mark.parametrize(
    ("rows", "ids"),
    [
        ('"1","alice"\n"2","bob"\n', ["alice", "bob"]),
        ('"1","alice"\r\n"2","bob"\r\n', ["alice", "bob"]),
        ('"1","alice"\n"2","bob"', ["alice", "bob"]),
        ("1,alice\n2,bob\n", ["alice", "bob"]),
        ('"1","o""brien"\n', ['o"brien']),
        ('"1","two\nlines"\n', ["two\nlines"]),
        ('"1","naïve 😀"\n', ["naïve 😀"]),
        ('"1"," padded "\n', [" padded "]),
        ('"1","alice"\n"2","alice"\n', ["alice", "alice"]),
        ("", []),
        ("\n\n", []),
    ],
)
def test_file__well_formed__has_its_ids(rows: str, ids: list[str], tmp_path: Path) -> None:
    contents, found = read(tmp_path, HEADER + rows)
    assert found == ids
    assert contents.rows == len(ids)


def test_file__with_a_byte_order_mark__is_read(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeff" + HEADER + '"1","alice"\n')[1] == ["alice"]


def test_file__with_anonymous_and_unusable_users__counts_them(tmp_path: Path) -> None:
    rows = f'"1","alice"\n"2",""\n"3","  "\n"4","{"x" * 1025}"\n"5","a\0b"\n'
    contents, found = read(tmp_path, HEADER + rows)
    assert contents == Contents(rows=5, anonymous=2, unusable=2)
    assert found == ["alice"]


def test_file__with_all_ids_in_quotes_of_their_own__has_them_without(tmp_path: Path) -> None:
    rows = '"1","""alice"""\n"2",""\n"3","""o"brien"""\n'.replace('o"b', 'o""b')
    contents, found = read(tmp_path, HEADER + rows)
    assert found == ["alice", 'o"brien']
    assert contents.is_double_quoted


def test_file__with_some_ids_in_quotes__keeps_them(tmp_path: Path) -> None:
    """They are part of the id."""
    contents, found = read(tmp_path, HEADER + '"1","""nick"""\n"2","bob"\n')
    assert found == ['"nick"', "bob"]
    assert not contents.is_double_quoted


def test_file__with_another_column__has_its_values(tmp_path: Path) -> None:
    text = '"amplitude_id","user_id","email"\n"1","alice","a@x"\n"2","bob",""\n'
    contents, found = read(tmp_path, text, "email")
    assert found == ["a@x"]
    assert contents.anonymous == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>Sign in</html>",
        '{"error": "no"}',
        '"amplitude_id"\n"1"\n',
        HEADER + '"1","ali',
        HEADER + '"1"',
        HEADER + '"1","alice"\n"2"\n',
        HEADER + '"1","al"ice"\n',
        # As many values as there are columns, or the id may be in another one.
        HEADER + "1,doe,john\n",
        '"city","user_id"\nBern, CH,alice\n',
        '"user_id","city"\n"alice","Bern"\n"bo',
        '"user_id","city"\nalice,Bern\nbo',
        (HEADER + '"1","na').encode() + b"\xef",
        HEADER + '"1","' + "x" * 200_000 + '"\n',
    ],
)
def test_file__broken__is_an_error(text: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(UpstreamFileInvalid):
        read(tmp_path, text)


def test_file__read__lets_other_work_go_on(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    path.write_text(HEADER + "".join(f'"{n}","user{n}"\n' for n in range(5000)))
    pauses = 0

    def breathe() -> None:
        nonlocal pauses
        pauses += 1

    assert ExportFile(path, breathe=breathe).scan().rows == 5000
    assert pauses == 5
