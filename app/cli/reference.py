"""The part of docs/cli.md that is generated from the commands."""

from __future__ import annotations

from collections.abc import Iterator

import click

from app.cli import COMMANDS, GROUPS
from app.store import MEANINGS


def reference() -> str:
    """The help of every command and the findings of `store check`, as Markdown."""
    parts = []
    root = click.Context(click.Group("main"), info_name="cohort-receiver", terminal_width=88)
    for group in GROUPS:
        parts.append(f"## {group.name}\n\n{group.help}\n")
        above = click.Context(group, parent=root, info_name=group.name, terminal_width=88)
        for name in group.list_commands(above):
            command = group.get_command(above, name)
            assert command is not None
            parts += _described(command, above, f"{group.name} {name}")
    for command in COMMANDS:
        context = click.Context(command, parent=root, info_name=command.name, terminal_width=88)
        parts.append(f"## {command.name}\n\n```\n{command.get_help(context)}\n```\n")
    parts.append("## What a check can find\n")
    rows = ["| finding | means | repaired |", "|---|---|---|"]
    for problem, meaning in MEANINGS.items():
        rows.append(f"| `{problem}` | {meaning.text} | {'yes' if meaning.repairable else 'no'} |")
    return "\n".join([*parts, *rows]) + "\n"


def _described(command: click.Command, above: click.Context, words: str) -> Iterator[str]:
    """The help of a command, or of each command in a group."""
    context = click.Context(
        command, parent=above, info_name=words.rpartition(" ")[2], terminal_width=88
    )
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            nested = command.get_command(context, name)
            assert nested is not None
            yield from _described(nested, context, f"{words} {name}")
    else:
        yield f"### {words}\n\n```\n{command.get_help(context)}\n```\n"
