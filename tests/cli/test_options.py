"""Options described once: on the command line, in the dataclasses, and on the page of the documentation."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from app.cli import build_parser
from app.cli.options import add_options, given, options_page, options_table
from app.core.config import ModelOptions, RunConfig, RuntimeOptions

PAGE = Path(__file__).parents[2] / "docs" / "options.md"


@dataclass(frozen=True)
class _Toy:
    count: int | None = field(default=None, metadata={"help": "how many", "metavar": "N"})
    from_zero: int = field(default=0, metadata={"help": "a number", "metavar": "I", "natural": True})
    place: Path = field(default=Path("x"), metadata={"help": "a | place", "metavar": "DIR", "flag": "--where"})
    way: Literal["a", "b"] = field(default="a", metadata={"help": "which", "metavar": None})
    on: bool = field(default=True, metadata={"help": "whether", "metavar": None})
    off: bool = field(default=False, metadata={"help": "if so", "metavar": None})
    hidden: bool = False


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser()
    add_options(parser, _Toy)
    return parser


def test_what_is_not_given_is_left_to_the_dataclass(parser):
    assert given(parser.parse_args([]), _Toy) == {}
    assert _Toy(**given(parser.parse_args(["--count", "3"]), _Toy)) == _Toy(count=3)


def test_values_have_the_fields_types(parser):
    arguments = ["--count", "3", "--from-zero", "0", "--where", "y", "--way", "b", "--no-on", "--off"]
    assert _Toy(**given(parser.parse_args(arguments), _Toy)) == _Toy(3, 0, Path("y"), "b", on=False, off=True)


@pytest.mark.parametrize("arguments", [["--count", "0"], ["--where", ""], ["--way", "c"], ["--hidden"]])
def test_others_are_refused(parser, arguments):
    with pytest.raises(SystemExit):
        parser.parse_args(arguments)


def test_only_the_fields_that_are_named():
    parser = argparse.ArgumentParser()
    add_options(parser, _Toy, "way")
    assert vars(parser.parse_args(["--way", "b"])) == {"way": "b"}
    with pytest.raises(SystemExit):
        parser.parse_args(["--off"])


def test_the_table_names_spellings_values_and_meaning(parser):
    assert options_table(parser).splitlines() == [
        "| option | meaning |",
        "|---|---|",
        "| `--count N` | how many |",
        "| `--from-zero I` | a number |",
        "| `--where DIR` | a \\| place |",
        "| `--way a\\|b` | which |",
        "| `--on`, `--no-on` | whether |",
        "| `--off` | if so |",
    ]


def test_every_option_of_a_run_is_on_the_command_line():
    options = build_parser().parse_args(["synthesize", "--weights", "w", "--device", "cpu", "--part-id", "2"])
    assert given(options, ModelOptions) == {"weights_dir": Path("w")}
    assert given(options, RuntimeOptions) == {"device": "cpu"}
    assert given(options, RunConfig) == {"part_id": 2}


def test_the_committed_page_is_what_the_command_line_says():
    assert PAGE.read_text() == options_page(), "run `make options`"
