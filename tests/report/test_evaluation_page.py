from __future__ import annotations

import pytest

from app.core.constants import MODALITIES
from app.data.phantom import make_phantom, write_phantom
from app.evaluation.scoring import find_pairs, score_all
from app.evaluation.statistics import COLUMNS, summarise
from app.report.evaluation_page import write_evaluation_report


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Copies of two sequences of a phantom beside their originals."""
    folder = tmp_path_factory.mktemp("pairs")
    phantom = make_phantom((40, 44, 36), 0)
    write_phantom(phantom, folder / "real", "p")
    write_phantom(phantom, folder / "copy", "p", leave_out=("t1n", "t2w"))
    return find_pairs(folder / "copy", folder / "real")[0]


def test_the_page_names_volumes_problems_and_tables(pairs, tmp_path):
    scores = score_all(pairs, jobs=1)
    tables = [[["replaced", "n"], ["t1c", "1"]], [["against own result", "n"], ["t1c", "1"]]]
    page = tmp_path / "report.html"
    write_evaluation_report(scores, summarise(scores), ["a <problem>"], COLUMNS, pairs, {"border": "keep"}, page,
                            calibration=([["confidence", "n"], ["all", "2"]], b"png"), downstream=tables)  # fmt: skip
    text = page.read_text()
    assert "a &lt;problem&gt;" in text
    assert all(f"p {pair.modality}" in text for pair in pairs)
    assert text.count("The tumour as the 3D segmenter finds it") == 2
    assert "Confidence: expected and observed error" in text
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["p-t1c.png", "p-t2f.png"]


def test_a_volume_without_scores_is_a_gap_and_no_error(pairs, tmp_path):
    scores = score_all(pairs, jobs=1)
    scores[0].values = {}
    write_evaluation_report(scores, summarise(scores), [], COLUMNS, pairs[:1], {}, tmp_path / "report.html")
    assert "nan" in (tmp_path / "report.html").read_text()
    assert {s.modality for s in scores} < set(MODALITIES)
