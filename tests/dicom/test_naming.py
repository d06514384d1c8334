from __future__ import annotations

from dataclasses import replace

import pytest

from app.dicom.naming import SeriesHeader, name_series, weighting_by_physics, weighting_by_words

SE_T1 = SeriesHeader(technique=("SE",), echo=10, repetition=450)
TSE_T2 = SeriesHeader(technique=("SE",), echo=100, repetition=4400)
FLAIR = SeriesHeader(technique=("IR",), echo=100, repetition=9000, inversion=2500)


@pytest.mark.parametrize(
    "header,weighting",
    [
        (SE_T1, "t1"),
        (TSE_T2, "t2w"),
        (FLAIR, "t2f"),
        (SeriesHeader(technique=("GR",), echo=3.2, repetition=8.9, inversion=900), "t1"),
        (SeriesHeader(technique=("SE", "IR"), echo=10, repetition=2000, inversion=860), "t1"),
        (SeriesHeader(technique=("SE", "IR"), echo=394, repetition=6000, inversion=2200), "t2f"),
        (SeriesHeader(technique=("GR",), echo=25, repetition=600), None),
        (SeriesHeader(technique=("SE",), echo=45, repetition=2500), None),
        (SeriesHeader(), None),
    ],
)
def test_physics(header, weighting):
    assert weighting_by_physics(header) == weighting


@pytest.mark.parametrize(
    "texts,weighting",
    [
        (("AX T1 FLAIR",), "t1"),
        (("sT2W/FLAIR",), "t2f"),
        (("T2 darkfluid",), "t2f"),
        (("MPRAGE",), "t1"),
        (("Ax T1 +C",), "t1"),
        (("sT2/TSE/T",), "t2w"),
        (("t2", "*tse2d1"), "t2w"),
        (("ax t2*",), None),
        (("AX BRAIN",), None),
        (("T1", "T2"), None),
    ],
)
def test_words(texts, weighting):
    assert weighting_by_words(texts) == weighting


@pytest.mark.parametrize(
    "header,sequence",
    [
        (SE_T1, "t1n"),
        (replace(SE_T1, agent=True), "t1c"),
        (replace(SE_T1, description=("AX T1 POST GAD",)), "t1c"),
        (replace(SE_T1, description=("T1 +C",)), "t1c"),
        (replace(SE_T1, description=("T1 pre",)), "t1n"),
        (replace(SE_T1, description=("T1 pre contrast",)), "t1n"),
        (replace(SE_T1, description=("T1 without contrast",)), "t1n"),
        (replace(SE_T1, description=("T1 w/o Gd",)), "t1n"),
        (replace(SE_T1, description=("T1 pre contrast",), agent=False), "t1n"),
        (SeriesHeader(("AX T1 FLAIR",), ("SE", "IR"), 20.0, 2200.0, 860.0), "t1n"),
        (SeriesHeader(("T1 TSE",), ("SE",), 15.0, 1900.0), "t1n"),
        (replace(SE_T1, description=("T1 subject 3 location B",)), "t1n"),
        (TSE_T2, "t2w"),
        (replace(FLAIR, description=("T2 FLAIR",)), "t2f"),
    ],
)
def test_sequences(header, sequence):
    found = name_series(header)
    assert found.sequence == sequence
    assert not found.ask


@pytest.mark.parametrize(
    "header,why",
    [
        (replace(TSE_T2, description=("AX T1",)), "its timing is that of t2w, its name says t1"),
        (SeriesHeader(description=("AX BRAIN",)), "neither timing nor name"),
        (replace(SE_T1, description=("T1 pre post gd",)), "both with and without contrast"),
        (replace(SE_T1, description=("T1 native",), agent=True), "its header names an agent"),
        (SeriesHeader(("AX T2",), (), 30.0, 600.0), "it has an echo of 30 ms"),
        (SeriesHeader(("AX T1",), ("SE",), 90.0, 1500.0), "it has an echo of 90 ms"),
        (SeriesHeader((), (), 30.0, 600.0), "neither timing nor name"),
    ],
)
def test_where_a_person_must_say(header, why):
    found = name_series(header)
    assert found.sequence is None
    assert found.ask
    assert why in found.why


@pytest.mark.parametrize(
    "header",
    [
        replace(FLAIR, description=("FLAIR_ROI",)),
        replace(TSE_T2, description=("DWI b1000",)),
        replace(TSE_T2, b_value=1000.0),
        replace(TSE_T2, image_type=("DERIVED", "SECONDARY", "ADC")),
        replace(SE_T1, description=("3-plane localizer",)),
        # A gradient echo is a T2* or balanced, whatever it is called.
        SeriesHeader(("AX T2 GRE",), ("GR",), 20.0, 600.0),
        SeriesHeader(("T2 FFE",), ("GR",)),
        SeriesHeader(("T2 CISS",), ("GR",), 4.0, 9.0),
        SeriesHeader(("AX PD",), ("SE",), 15.0, 3000.0),
        SeriesHeader(("ep2d_diff_mddw",), ("EP",), 90.0, 6000.0),
        SeriesHeader(("SWAN",), ("GR",), 25.0, 40.0),
    ],
)
def test_series_that_are_no_sequence(header):
    found = name_series(header)
    assert found.sequence is None
    assert not found.ask
