from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.argument_types import EXIT_CODES, factor, natural, path, positive, share, views
from app.core.constants import VIEWS
from app.core.errors import ExitCode


@given(st.integers(0, 10**9))
def test_whole_numbers(number):
    assert natural(str(number)) == number
    assert positive(str(number + 1)) == number + 1


@given(st.floats(0, 1))
def test_shares(number):
    assert share(repr(number)) == number


@given(st.floats(0, 3))
def test_factors(number):
    assert factor(repr(number)) == number


@given(st.lists(st.sampled_from(VIEWS), min_size=1))
def test_views_come_in_their_order_and_once(names):
    assert views(",".join(names)) == tuple(v for v in VIEWS if v in names)


@pytest.mark.parametrize(
    "convert,text",
    [(path, ""), (positive, "0"), (positive, "1.5"), (positive, "-2"), (natural, "-1"), (natural, "x"), (natural, ""),
     (share, "1.1"), (share, "-0.1"), (share, "half"), (share, "nan"), (factor, "3.1"), (factor, "-1"), (factor, "nan"),
     (views, "axial,oblique"), (views, "")],
)  # fmt: skip
def test_what_is_refused_is_refused_in_words(convert, text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not a|is no view|is empty"):
        convert(text)


def test_a_path():
    assert path("a/b") == Path("a/b")


def test_the_text_names_every_exit_code():
    for code in ExitCode:
        assert f" {code:d} " in EXIT_CODES
