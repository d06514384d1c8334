from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.json_text import readable_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
)


@given(values)
def test_what_is_read_is_what_was_written(value):
    content = readable_json(value)
    assert json.loads(content) == value
    assert content.endswith(b"\n")


def test_short_lists_stay_on_one_line_and_long_ones_do_not():
    text = readable_json({"short": [1, 2], "long": list(range(60))}).decode()
    assert '  "short": [1, 2],\n' in text
    assert len(text.splitlines()) > 60


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_json_has_not_is_refused(number):
    with pytest.raises(ValueError, match="JSON"):
        readable_json({"a": number})
