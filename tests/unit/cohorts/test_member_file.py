"""Files of members, as Amplitude and others write them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.cohorts.member_file import (
    BYTES_AT_ONCE,
    MAX_LINE_BYTES,
    USERS_AT_ONCE,
    FileFormat,
    InvalidFile,
    MemberFile,
    format_of,
)

CSV, NDJSON = FileFormat.CSV, FileFormat.NDJSON


def chunks(text: str | bytes, size: int) -> Iterator[bytes]:
    raw = text.encode() if isinstance(text, str) else text
    return (raw[start : start + size] for start in range(0, len(raw), size))


def read(file: MemberFile, text: str | bytes, size: int = 7) -> list[str]:
    return [user for part in file.read(chunks(text, size)) for user in part]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    "text",
    [
        '"amplitude_id","user_id"\n"1","alice"\n"2","bob"\n',
        '"amplitude_id","user_id"\r\n"1","alice"\r\n"2","bob"\r\n',
        "\ufeffUser ID,Amplitude ID\nalice,1\nbob,2",
        "user_id\ralice\rbob\r",
        'email,userId\n,alice\n\n\n"a\nb",bob\n',
        "user_id,since\nalice,1\nbob,2\n",
    ],
)
def test_csv__as_various_programs_write_it__gives_the_users(text: str, size: int) -> None:
    file = MemberFile(CSV)
    assert read(file, text, size) == ["alice", "bob"]
    assert file.rejected == 0


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_ndjson__of_objects_strings_and_numbers__gives_the_users(size: int) -> None:
    text = '\ufeff{"userId": "älice"}\n"bob"\r\n\n{"user_id": 7}\n12\n{"userId":"no newline"}'
    assert read(MemberFile(NDJSON), text, size) == ["älice", "bob", "7", "12", "no newline"]


def test_ids__with_quotes_commas_and_line_breaks__are_kept() -> None:
    ids = ['say "hi"', "a,b", "two\nlines", " spaced ", "'quoted", "=1+1"]
    rows = "".join('"{}"\n'.format(user.replace('"', '""')) for user in ids)
    assert read(MemberFile(CSV), "user_id\n" + rows) == ids


@pytest.mark.parametrize("column", ["since", "reason"])
def test_file_of_this_service__gives_the_ids_back(column: str) -> None:
    text = f'"user_id","{column}"\r\n"\'=1+1",5\r\n"\'\'x",5\r\n'
    assert read(MemberFile(CSV), text) == ["=1+1", "'x"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'\xef\xbb\xbf"user_id","reason"\r\n', CSV),
        (b"Amplitude ID,User ID", CSV),
        (b"user_id\n", CSV),
        (b"user_id;since\n", CSV),
        (b'\xef\xbb\xbf {"userId": "a"}\n', NDJSON),
        (b'{"user_id": "a"\n', NDJSON),
        (b"alice\n", None),
        (b"user_id@example.com", None),
        (b"{3f2504e0-4f89-11d3-9a0c-0305e82c3301}", None),
        (b'"a","b"\n', None),
        (b"\xff\xfe", None),
        (b"", None),
    ],
)
def test_format_of__goes_by_a_header_or_an_object(line: bytes, expected: FileFormat | None) -> None:
    assert format_of(line) is expected


def test_column__if_given__is_read() -> None:
    assert read(MemberFile(CSV, "email"), "user_id,email\n1,a@example.com\n") == ["a@example.com"]


@pytest.mark.parametrize(
    "text", ["User ID,user_id\nwrong,alice\n", "\n\nuser_id\nalice\n", "x,USER-ID\n1,alice\n"]
)
def test_column__of_that_very_name__comes_first(text: str) -> None:
    assert read(MemberFile(CSV), text) == ["alice"]


def test_rows_without_a_usable_id__are_counted_and_the_first_with_one_reported() -> None:
    file = MemberFile(CSV)
    rows = ["1,", "2,  ", "3", *["4,"] * 100, f"5,{'x' * 1025}", *["6,a\0b"] * 60, "7,alice"]
    assert read(file, "amplitude_id,user_id\n" + "\n".join(rows)) == ["alice"]
    assert (file.rejected, file.without_id, len(file.errors)) == (164, 103, 50)
    assert file.errors[:2] == [
        (105, "Must be at most 1024 bytes of UTF-8."),
        (106, "Must not contain NUL."),
    ]
    lines = MemberFile(NDJSON)
    text = '{"userId": null}\ntrue\n1.0\n-1\n9007199254740993\n{"userId": ["x"]}\n"\\ud800"\n"ok"'
    assert read(lines, text) == ["-1", "ok"]  # as every source accepts them
    assert (lines.rejected, lines.without_id) == (6, 1)
    assert lines.errors[:2] == [(2, "Must be a string."), (3, "Must be a string.")]


@pytest.mark.parametrize(
    ("format", "text", "message"),
    [
        (CSV, "", "The file is empty. A header line is needed."),
        (CSV, "id,name\n1,x\n", "The header has no column user_id. It has: id, name."),
        (CSV, "u1\nu2\n", "The header has no column user_id. It has: u1. Is the first line an id?"),
        (CSV, 'user_id\n"a"b\n', "Line 2 is not valid CSV: "),
        (CSV, 'user_id\n"never closed\n', "Line 2 is not valid CSV: "),
        (CSV, b"user_id\nok\n\xff\xfe\n", "Line 3 is not valid UTF-8."),
        (CSV, "user_id\nok\n".encode("utf-16-le"), "The header has no column user_id. "),
        (CSV, "user_id\n" + "x" * (MAX_LINE_BYTES + 1), "Line 2 is longer than "),
        (CSV, 'user_id\n"' + "x\n" * MAX_LINE_BYTES, "Line "),
        (NDJSON, '"a"\n{"userId": \n', "Line 2 is not valid JSON."),
        (NDJSON, "[" * 60_000, "Line 1 is not valid JSON."),
    ],
)
def test_file__that_cannot_be_read__says_why(
    format: FileFormat, text: str | bytes, message: str
) -> None:
    with pytest.raises(InvalidFile, match=message):
        read(MemberFile(format), text, 1000)


def test_column__that_is_missing__is_named() -> None:
    with pytest.raises(InvalidFile, match="no column email"):
        read(MemberFile(CSV, "email"), "user_id\n1\n")


def test_line__that_does_not_end__is_refused_once_it_is_too_long() -> None:
    sent = iter([b"x" * 1000] * 1000)
    with pytest.raises(InvalidFile, match=f"Line 1 is longer than {MAX_LINE_BYTES} bytes"):
        list(MemberFile(NDJSON).read(sent))
    assert len(list(sent)) > 900  # was not read


def test_users__of_a_long_file__are_given_some_at_a_time() -> None:
    ids = [f"u{number}" for number in range(2 * USERS_AT_ONCE)]
    parts = list(MemberFile(CSV).read(chunks("user_id\n" + "\n".join(ids), 1000)))
    assert parts == [ids[:USERS_AT_ONCE], ids[USERS_AT_ONCE:]]


@pytest.mark.parametrize("first", ["alice", ""])
def test_long_rows__that_arrive_slowly__are_passed_on_before_there_are_many(first: str) -> None:
    """Otherwise an import would look abandoned while its file arrives."""
    row = f"{first},{'x' * 10_000}\n"
    rows = 3 * BYTES_AT_ONCE // len(row)
    parts = MemberFile(CSV).read(chunks("user_id,properties\n" + row * rows, len(row)))
    assert [bool(part) for part in parts][:2] == [bool(first)] * 2
