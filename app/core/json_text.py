"""JSON that people can read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

#: Widest list or table that stays on one line, indented.
_LINE: Final = 100


def readable_json(form: Any) -> bytes:
    """Encode plain values as indented JSON, short lists and tables on one line.

    Raises:
        ValueError: a number is not finite.
    """
    return ("".join(_parts(form, 0)) + "\n").encode()


def _parts(value: Any, depth: int) -> Iterator[str]:
    flat = json.dumps(value, allow_nan=False)
    if not isinstance(value, dict | list) or not value or (depth > 0 and len(flat) + 2 * depth <= _LINE):
        yield flat
        return
    rows = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    for number, (key, item) in enumerate(rows):
        yield (",\n" if number else "{\n" if isinstance(value, dict) else "[\n") + "  " * (depth + 1)
        yield "" if key is None else f"{json.dumps(key)}: "
        yield from _parts(item, depth + 1)
    yield "\n" + "  " * depth + ("}" if isinstance(value, dict) else "]")
