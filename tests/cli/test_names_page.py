from __future__ import annotations

from pathlib import Path

from app.cli.names_page import names_page
from app.data.naming.collections import COLLECTIONS

PAGE = Path(__file__).parents[2] / "docs" / "names.md"


def test_the_page_is_as_the_tables_make_it():
    assert PAGE.read_text(encoding="utf-8") == names_page()


def test_every_collection_is_on_it():
    page = names_page()
    assert all(c.title in page for c in COLLECTIONS)
