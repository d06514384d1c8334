from __future__ import annotations

from dataclasses import replace

import pytest

from app.dicom.naming import SeriesHeader, name_series
from app.dicom.timing import Timing

SE_T1 = SeriesHeader(timing=Timing(("SE",), 10, 450))
TSE_T2 = SeriesHeader(timing=Timing(("SE",), 100, 4400))
FLAIR = SeriesHeader(timing=Timing(("IR",), 100, 9000, 2500))
SHORT = Timing(("GR",), 3.2, 8.9)


def _header(text, technique=(), *times, **more):
    return SeriesHeader(text, Timing(technique, *times), **more)


@pytest.mark.parametrize(
    "header,sequence",
    [
        (SE_T1, "t1n"),
        (replace(SE_T1, agent=True), "t1c"),
        (replace(SE_T1, description="AX T1 POST GAD"), "t1c"),
        (replace(SE_T1, description="T1 pre contrast"), "t1n"),
        (replace(SE_T1, description="T1 subject 3 location B"), "t1n"),
        (_header("AX T1 FLAIR", ("SE", "IR"), 20.0, 2200.0, 860.0), "t1n"),
        (_header("T1 TSE", ("SE",), 15.0, 1900.0), "t1n"),
        (SeriesHeader("Sag 3D BRAVO", SHORT), "t1n"),
        # Scrubbed: timing alone.
        (SeriesHeader("", SHORT), "t1n"),
        (TSE_T2, "t2w"),
        (_header("pd+t2_tse_tra", ("SE",), 98.0, 4000.0), "t2w"),
        (replace(FLAIR, description="T2 FLAIR"), "t2f"),
        (_header("t2_spc_ir_sag_p2_iso", ("SE", "IR"), 388.0, 5000.0, 1800.0), "t2f"),
        (_header("T2 FLAIR"), "t2f"),
    ],
)
def test_sequences(header, sequence):
    found = name_series(header)
    assert found.sequence == sequence
    assert not found.ask


def test_only_a_word_or_an_agent_makes_a_t1_sure():
    assert not name_series(SE_T1).sure
    assert name_series(replace(SE_T1, description="T1 nativ")).sure
    assert name_series(replace(SE_T1, agent=True)).sure


@pytest.mark.parametrize(
    "header,why",
    [
        (replace(TSE_T2, description="AX T1"), "its timing is that of t2w, its name says t1"),
        (_header("AX BRAIN"), "neither timing nor name"),
        (_header("", (), 30.0, 600.0), "neither timing nor name"),
        (replace(SE_T1, description="T1 pre post gd"), "both with and without contrast"),
        (replace(SE_T1, description="T1 native", agent=True), "its header names an agent"),
        (replace(SE_T1, description="T1 STEALTH"), "its name may mean with contrast or without"),
        (SeriesHeader("3D HEAD", SHORT), "a gradient echo that no name explains"),
        (_header("AX T2", (), 30.0, 600.0), "it has an echo of 30 ms"),
        (_header("AX T1", ("SE",), 90.0, 1500.0), "it has an echo of 90 ms"),
    ],
)
def test_where_a_person_must_say(header, why):
    found = name_series(header)
    assert found.sequence is None
    assert found.ask
    assert why in found.why


def test_an_agent_that_all_series_name_says_nothing():
    assert name_series(replace(SE_T1, agent=True), agent_counts=False).ask
    named = replace(SE_T1, agent=True, description="T1 KM")
    assert name_series(named, agent_counts=False).sequence == "t1c"


@pytest.mark.parametrize(
    "header",
    [
        replace(FLAIR, description="FLAIR_ROI"),
        replace(TSE_T2, b_value=1000.0),
        replace(TSE_T2, image_type=("DERIVED", "SECONDARY", "ADC")),
        replace(SE_T1, image_type=("DERIVED", "PRIMARY", "T1 MAP")),
        replace(SE_T1, image_type=("DERIVED", "PRIMARY", "M", "SUB")),
        replace(SE_T1, body_part="LSPINE"),
        _header("AX T2 GRE", ("GR",), 20.0, 600.0),
        _header("AX GRE", ("GR",), 15.0, 650.0),
        _header("AX PD", ("SE",), 15.0, 3000.0),
        _header("DIFF", ("EP",), 90.0, 6000.0),
    ],
)
def test_series_that_are_no_sequence(header):
    found = name_series(header)
    assert found.sequence is None
    assert not found.ask
