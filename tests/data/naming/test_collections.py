"""Every row of the table of collections is read as it says."""

from __future__ import annotations

import pytest

from app.data.naming.collections import COLLECTIONS
from tests.data.naming.layouts import layout

NAMES = {
    "BraTS 2012 to 2015": "brats_2013_pat0001_1",
    "HD-GLIO, HD-GLIO-AUTO": "case",
    "LUMIERE": "Patient-001_week-000",
    "Erasmus Glioma Database (EGD)": "EGD-0265",
    "UK Biobank": "1000001",
    "CaPTk, FeTS": "AAAC",
    "TCGA-GBM, TCGA-LGG (TCIA)": "TCGA-02-0006_1996.08.23",
    "MSLesSeg": "P1_T1",
    "BIDS": "sub-01_ses-1",
}


@pytest.mark.parametrize("collection", COLLECTIONS, ids=lambda c: c.title)
def test_every_example_is_read_as_the_table_says(collection):
    found = layout(*collection.files, *collection.others)
    (subject,) = found.subjects
    assert found.subjects[subject] == {m: f for f, m in collection.files.items()}
    assert found.others | found.left == set(collection.others)
    assert not found.unknown
    if collection.title in NAMES:
        assert subject == NAMES[collection.title]


@pytest.mark.parametrize("collection", COLLECTIONS, ids=lambda c: c.title)
def test_whatever_lacks_the_others_keep_their_sequence_and_subject(collection):
    if collection.title == "MSLesSeg":
        pytest.skip("its T1 and T2 prove that the first word counts time points")
    whole = layout(*collection.files)
    (subject,) = whole.subjects
    for dropped in collection.files:
        kept = {f: m for f, m in collection.files.items() if f != dropped}
        assert layout(*kept).subjects == {subject: {m: f for f, m in kept.items()}}


def test_two_patients_of_a_collection_stay_two():
    for collection in COLLECTIONS:
        (first,) = layout(*collection.files).subjects
        others = [f.replace("1", "7").replace("case/", "case7/").replace("AAAC", "AAAD") for f in collection.files]
        if any(f in collection.files for f in others) or "T7" in "".join(others):
            continue
        found = layout(*collection.files, *others)
        assert len(found.subjects) == 2, collection.title
        assert first in found.subjects, collection.title
