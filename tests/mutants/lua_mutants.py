"""The mistakes that can be planted in a Lua script."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.mutants.mutant import Mutant

# Comments, texts and the tokens that are worth a mistake, in this order: the first match counts.
_TOKEN = re.compile(
    r"""
    (?P<comment> ^\#!.*? $ | --[^\n]* )
    | (?P<text> '(?:[^'\\\n]|\\.)*' | "(?:[^"\\\n]|\\.)*" )
    | (?P<operator> == | ~= | <= | >= | \.\. | [<>+*] | (?<=\s)-(?=\s) )
    | (?P<word> [A-Za-z_]\w* )
    | (?P<number> \d+ (?:\.\d+)? )
    """,
    re.VERBOSE | re.MULTILINE,
)
_REPLACED = {
    "==": "~=",
    "~=": "==",
    "<": "<=",
    "<=": "<",
    ">": ">=",
    ">=": ">",
    "+": "-",
    "-": "+",
    "*": "+",
    "and": "or",
    "or": "and",
    "true": "false",
    "false": "true",
    "max": "min",
    "min": "max",
}
# A call that is a statement: nothing precedes it on its line, or a keyword does.
_STATEMENT = re.compile(
    r"(?m)(?:^[ ]*|\b(?:then|else|do)[ ]+)"
    r"(?P<call>(?:call|redis\.p?call|attempt|on_hash|set|emit|report|note_\w+|expect\w*|table\.remove)\()"
)
# Another command's name would fail wherever it is reached.
_COMMAND = re.compile("'[A-Z]+'")
_CALL = re.compile(r"\b[A-Za-z_][\w.]*\(")


def lua_mutants(path: str, text: str) -> list[Mutant]:
    """All mistakes for a script, in the order of the text."""
    found = {*_tokens(path, text), *_removed(path, text), *_swapped(path, text)}
    return sorted(found, key=lambda one: (one.start, one.end, one.new))


def _tokens(path: str, text: str) -> Iterator[Mutant]:
    for match in _TOKEN.finditer(text):
        token, (start, end) = match[0], match.span()
        if match["number"]:
            yield Mutant(path, start, end, f"({token} + 1)", "number plus 1")
        elif token == "not":
            yield Mutant(path, start, end + 1, "", "not removed")
        elif match["text"] and 2 < len(token) <= 20 and not _COMMAND.fullmatch(token):
            yield Mutant(path, end - 1, end - 1, "X", "string changed")
        elif not match["text"] and not match["comment"] and token in _REPLACED:
            new = _REPLACED[token]
            yield Mutant(path, start, end, new, f"{token} to {new}")


def _removed(path: str, text: str) -> Iterator[Mutant]:
    """Without one of the commands or other calls that are statements."""
    code = _without_comments(text)
    for match in _STATEMENT.finditer(code):
        start, end = match.start("call"), _end_of_call(code, match.end())
        yield Mutant(path, start, end, "do end", "statement removed")


def _swapped(path: str, text: str) -> Iterator[Mutant]:
    """With the last two arguments of a call in the other order."""
    code = _without_comments(text)
    for match in _CALL.finditer(code):
        if code[: match.start()].rstrip().endswith("function"):
            continue
        commas = _commas(code, match.end())
        if len(commas) < 3:  # fewer than two arguments
            continue
        first, second, end = commas[-3:]
        left, right = text[first + 1 : second].strip(), text[second + 1 : end].strip()
        if left != right and not right.startswith("unpack("):
            yield Mutant(path, first + 1, end, f"{right}, {left}", "arguments swapped")


def _commas(code: str, start: int) -> list[int]:
    """The positions before the first argument, of the commas, and of the closing bracket."""
    depth, found = 0, [start - 1]
    for match in re.finditer(r"'(?:[^'\\\n]|\\.)*'|[(){}\[\],]", code[start:]):
        at, token = start + match.start(), match[0]
        if token in ("(", "{", "["):
            depth += 1
        elif token in (")", "}", "]"):
            if depth == 0:
                return [*found, at]
            depth -= 1
        elif token == "," and depth == 0:
            found.append(at)
    raise ValueError(f"A call at {start} has no end.")


def _end_of_call(code: str, start: int) -> int:
    return _commas(code, start)[-1] + 1


def _without_comments(text: str) -> str:
    """The script with comments blanked out, so that positions stay."""

    def blank(match: re.Match[str]) -> str:
        return " " * len(match[0]) if match["comment"] else match[0]

    return _TOKEN.sub(blank, text)
