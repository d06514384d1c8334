from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from app.core.constants import MODALITIES
from app.core.errors import OutputError
from app.inference.simulation import exam_files as module
from app.inference.simulation.atlas import plain_frame
from app.inference.simulation.exam_files import save_exam

SHAPE = (6, 7, 8)
FRAME = plain_frame(SHAPE, (0, 0, 0))
LABELS = np.ones(SHAPE, np.uint8)


def _volumes(value=7.0):
    return {m: np.full(SHAPE, value, np.float32) for m in MODALITIES}


def test_files_and_their_headers(tmp_path):
    text = "SYNTHETIC exam of a test " + 80 * "x"
    save_exam(tmp_path / "e", _volumes(), LABELS, FRAME, text, {tmp_path / "sure.nii.gz": np.zeros(SHAPE)})
    names = sorted(p.name for p in (tmp_path / "e").iterdir())
    assert names == ["e-seg.nii.gz", *(f"e-{m}.nii.gz" for m in MODALITIES)]
    for path in (*(tmp_path / "e").iterdir(), tmp_path / "sure.nii.gz"):
        image = nib.load(path)
        assert image.header["descrip"].item().decode() == text[:79]
        np.testing.assert_array_equal(image.affine, FRAME.matrix)
    assert nib.load(tmp_path / "e" / "e-t1c.nii.gz").get_data_dtype() == np.int16


def test_values_beyond_16_bits_stay(tmp_path):
    save_exam(tmp_path / "e", _volumes(50_000.0), LABELS, FRAME, "x")
    assert np.asarray(nib.load(tmp_path / "e" / "e-t1c.nii.gz").dataobj).max() == 50_000


def test_of_an_exam_that_cannot_be_written_nothing_stays(tmp_path, monkeypatch):
    def full(contents):
        next(iter(contents)).write_bytes(b"half")
        raise OutputError("disk full")

    monkeypatch.setattr(module, "save_together", full)
    with pytest.raises(OutputError):
        save_exam(tmp_path / "e", _volumes(), LABELS, FRAME, "x")
    assert not list(tmp_path.iterdir())
