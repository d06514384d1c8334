from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from app.core.constants import MODALITIES
from app.data.phantom import make_phantom, write_phantom
from app.report.figures import draw_files, picture, shrink


@pytest.fixture(scope="module")
def small():
    return make_phantom((40, 44, 36), 0)


@pytest.fixture(scope="module")
def png(small):
    inputs = {m: small.volumes[m] for m in MODALITIES if m != "t2f"}
    return picture(inputs, "t2f", small.volumes["t2f"], small.volumes["t2f"], small.labels == 3, title="a $ & \ud800")


def test_the_same_volumes_give_the_same_bytes(small, png):
    inputs = {m: small.volumes[m] for m in MODALITIES if m != "t2f"}
    again = picture(inputs, "t2f", small.volumes["t2f"], small.volumes["t2f"], small.labels == 3, title="a $ & \ud800")
    assert png == again
    assert png.startswith(b"\x89PNG")


def test_each_sequence_has_its_column(small, png):
    alone = picture({"t1n": small.volumes["t1n"]}, "t2f", small.volumes["t2f"])
    with Image.open(io.BytesIO(png)) as wide, Image.open(io.BytesIO(alone)) as narrow:
        assert wide.width > narrow.width
        assert wide.height == narrow.height


def test_an_empty_synthesis_is_pictured_too(small):
    zero = np.zeros_like(small.volumes["t2f"])
    assert picture({"t1n": small.volumes["t1n"]}, "t2f", zero, confidence=zero).startswith(b"\x89PNG")


def test_a_small_copy_is_a_smaller_jpeg(png):
    small = shrink(png, 0.5)
    assert small.startswith(b"\xff\xd8")
    with Image.open(io.BytesIO(png)) as one, Image.open(io.BytesIO(small)) as other:
        assert other.width == pytest.approx(one.width / 2, abs=1)


def test_files_are_pictured_and_an_unreadable_one_is_named(small, tmp_path, caplog):
    write_phantom(small, tmp_path, "p")
    files = {m: tmp_path / "p" / f"p-{m}.nii.gz" for m in MODALITIES}
    synthesis = files.pop("t2f")
    assert draw_files("p", files, "t2f", synthesis, tmp_path).startswith(b"\xff\xd8")
    assert (tmp_path / "pictures" / "p-t2f.png").is_file()
    synthesis.write_bytes(b"no image")
    assert draw_files("p", files, "t2f", synthesis, tmp_path / "none") == b""
    assert "No picture of p" in caplog.text
    assert not (tmp_path / "none").exists()
