"""Options of the command line, made from the fields that describe them, and their page."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from app.cli.argument_types import natural, path, positive, share

_PAGE: Final = """# Options of `synthesize` and `segment`

This page is made from the command line: `make options` writes it, a test compares both.

"""


def add_options(parser: argparse.ArgumentParser, kind: type[Any], *names: str) -> None:
    """Declare the options that a dataclass describes (`app.core.config`).

    An option that is not given is absent from the namespace, so that defaults stand in the dataclass alone.

    Args:
        names: the fields to declare; all that are options if not given.
    """
    hints = typing.get_type_hints(kind)
    for field in _fields(kind):
        if names and field.name not in names:
            continue
        flag = field.metadata.get("flag", "--" + field.name.replace("_", "-"))
        parser.add_argument(
            flag, dest=field.name, default=argparse.SUPPRESS, help=field.metadata["help"],
            **_form(hints[field.name], field),
        )  # fmt: skip


def given(options: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    """Return the fields of a dataclass that the command line named."""
    values = {f.name: getattr(options, f.name) for f in _fields(kind) if hasattr(options, f.name)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _fields(kind: type[Any]) -> Iterator[dataclasses.Field[Any]]:
    return (f for f in dataclasses.fields(kind) if "help" in f.metadata)


def _form(hint: Any, field: dataclasses.Field[Any]) -> dict[str, Any]:
    """Choose what argparse needs for values of a type."""
    optional = typing.get_origin(hint) in {types.UnionType, typing.Union}
    kind = next(a for a in typing.get_args(hint) if a is not type(None)) if optional else hint
    if typing.get_origin(kind) is tuple:
        return {"action": "append", "metavar": field.metadata["metavar"]}
    if kind is bool:
        return {"action": "store_true" if field.default is False else argparse.BooleanOptionalAction}
    if typing.get_origin(kind) is typing.Literal:
        return {"choices": typing.get_args(kind)}
    readers = {int: natural if field.metadata.get("natural") else positive, Path: path, str: str, float: share}
    return {"type": readers[kind], "metavar": field.metadata["metavar"]}


def options_page() -> str:
    """Write the documentation's page on the options of `synthesize` and `segment`, in Markdown."""
    from app.cli import build_parser

    commands = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    tables = [f"## `{name}`\n\n{options_table(commands.choices[name])}" for name in ("synthesize", "segment")]
    return _PAGE + "\n".join(tables)


def options_table(parser: argparse.ArgumentParser) -> str:
    """Write a command's options as a Markdown table, hidden ones left out."""
    rows = ["| option | meaning |", "|---|---|"]
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        spellings = ", ".join(f"`{flag}{_value(action)}`" for flag in action.option_strings)
        meaning = (action.help or "").replace("|", "\\|").replace("<", "&lt;")
        rows.append(f"| {spellings} | {meaning} |")
    return "\n".join(rows) + "\n"


def _value(action: argparse.Action) -> str:
    """Name the value that follows an option; nothing where none does."""
    if action.choices is not None:
        choices = "\\|".join(map(str, action.choices))
        return f" [{choices}]" if action.nargs == "?" else f" {choices}"
    if action.nargs == 0:
        return ""
    return " " + (action.metavar if isinstance(action.metavar, str) else action.dest.upper())
