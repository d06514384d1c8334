from __future__ import annotations

import pytest

from app.core.errors import UsageError
from app.dicom import destination
from app.dicom.destination import Destination, require_network


@pytest.mark.parametrize("text", ["PACS@10.0.0.5:104", "MY PACS@pacs.example.org:11112", "A@[::1]:4242"])
def test_an_address_is_read_and_written(text):
    assert str(Destination.parse(text)) == text


def test_brackets_are_no_part_of_the_host():
    assert Destination.parse("A@[::1]:4242") == Destination("A", "::1", 4242)


@pytest.mark.parametrize(
    "text", ["", "PACS", "PACS@host", "@host:1", "PACS@host:0", "PACS@host:70000", "PACS@ho st:1", "A" * 17 + "@h:1",
             "A\\B@h:1", "PACS@host:x"]
)  # fmt: skip
def test_what_names_no_node(text):
    with pytest.raises(UsageError):
        Destination.parse(text)


def test_without_the_package_it_is_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setattr(destination.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install pynetdicom==3\.0\.4"):
        require_network()
