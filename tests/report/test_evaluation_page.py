from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from PIL import Image

from app.core.errors import OutputError
from app.report.evaluation_page import write_evaluation_report

COLUMNS = {"ssim": 3, "psnr": 1}
SUMMARY = {"all": {"ssim": {"mean": 0.87654, "sd": 0.01}, "psnr": {"mean": 25.04, "sd": 1.0}}}


@pytest.fixture
def write(subject, tmp_path):
    """Writes the page of one volume; returns its text."""
    inputs = {m: subject[m] for m in ("t1n", "t1c")}
    pair = SimpleNamespace(subject="sub01", modality="t2w", others=inputs, prediction=subject["t2w"],
                           reference=subject["t2w"], segmentation=None)  # fmt: skip

    def page(values=None, problems=(), place=tmp_path / "out", **options) -> str:
        scores = [SimpleNamespace(subject="sub01", modality="t2w", values=values or {"ssim": 0.87654, "psnr": 25.04})]
        place.mkdir(exist_ok=True)
        path = place / "report.html"
        write_evaluation_report(scores, SUMMARY, problems, COLUMNS, [pair], {"border": "keep"}, path, **options)
        return path.read_text()

    return page


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, format="png")
    return buffer.getvalue()


def test_scores_facts_and_pictures(write, tmp_path):
    text = write(problems=["<b> lacks a mask."])
    assert "0.877 ± 0.010" in text
    assert "<td>sub01 t2w</td><td>0.877</td><td>25.0</td>" in text
    assert "<td>border</td><td>keep</td>" in text
    assert "&lt;b&gt; lacks a mask." in text
    assert "ssim 0.877, psnr 25.0" in text
    assert text.count("data:image/jpeg") == 1
    assert (tmp_path / "out" / "pictures" / "sub01-t2w.png").is_file()


def test_a_metric_that_a_volume_lacks(write):
    text = write(values={"ssim": 0.5})
    assert "<td>0.500</td><td>nan</td>" in text
    assert "ssim 0.500\n" in text or "ssim 0.500<" in text


@pytest.mark.parametrize("given", [True, False])
def test_calibration_where_it_is_given(write, given):
    rows = [["confidence", "volumes"], ["all", "8"]]
    text = write(calibration=(rows, _png()) if given else None)
    assert ("Calibration of the confidence" in text) is given
    assert ("Confidence: expected and observed error" in text) is given
    assert ("<td>all</td><td>8</td>" in text) is given


def test_tables_of_what_a_segmenter_finds(write):
    text = write(downstream=[[["downstream", "Dice"], ["t2w", "0.9"]], [["own", "Dice"], ["t2w", "0.8"]]])
    assert text.count("The tumour as a segmenter finds it") == 2
    assert "<td>t2w</td><td>0.9</td>" in text


def test_a_page_that_cannot_be_written(write, tmp_path):
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    with pytest.raises(OutputError):
        write()
