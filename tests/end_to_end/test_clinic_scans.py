"""Studies as scanned, where they are at hand: nothing is stubbed, from the folder of DICOM to the derived series."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from importlib.util import find_spec

import numpy as np
import pydicom
import pytest

from app.cli import main
from app.core.errors import VolumeError
from app.dicom.series import find_series, geometry_of, read_series

pytestmark = [
    pytest.mark.data,
    # The package's own files are of that kind.
    pytest.mark.filterwarnings("ignore:.*torch.jit.load.*:DeprecationWarning"),
]

#: Errors of dciodvfy that are not ours: its dictionary lacks SyntheticData, and the study holds an over-long value.
_KNOWN = ("(0x0008,0x001c)", "Value invalid for this VR", "Value length exceeds", "invalid data values for Value Rep")


def _unpacked(data_dir, name, folder):
    archive = data_dir / "clinical" / "dicom" / name
    if not archive.is_file():
        pytest.skip(f"{archive} is not there")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def brainix(data_dir, tmp_path_factory):
    return _unpacked(data_dir, "brainix.tar.xz", tmp_path_factory.mktemp("brainix"))


@pytest.fixture(scope="module")
def completed(brainix, tmp_path_factory):
    """The folder of the result."""
    if find_spec("deepbet") is None:
        pytest.skip("deepbet is not installed")
    out = tmp_path_factory.mktemp("out")
    assert main(["clinic", str(brainix), str(out), "--dicom", "--model", "regression", "--id", "b"]) == 0
    return out


class TestBrainix:
    """A tumour patient: T1 SE, T2 TSE, FLAIR on three oblique grids, and a drawn series that is no sequence."""

    def test_each_series_is_named(self, brainix, capsys):
        assert main(["clinic", str(brainix), "--check"]) == 0
        said = capsys.readouterr().out
        for sequence in ("t1n", "t2w", "t2f"):
            assert f"{sequence} is series" in said
        assert "its name says 'roi'" in said
        assert "to make: t1c" in said

    def test_what_was_done_can_be_trusted(self, completed):
        record = json.loads((completed / "b-t1c.json").read_text())
        assert 1000 < record["brain"]["ml"] < 1900
        assert record["brain"]["from"] == "deepbet on t1n"
        assert min(record["brain"]["dice"].values()) > 0.9
        for form in record["sequences"].values():
            assert form["coverage"] > 0.95
            assert form["series"]
            if "alignment" in form:
                assert form["alignment"]["information"][1] < -0.7
                assert form["alignment"]["moved_mm"] < 5
        assert record["study"]

    def test_a_slice_for_each_of_the_reference_at_its_place(self, completed, brainix):
        made = [pydicom.dcmread(f) for f in sorted((completed / "b-t1c-dicom").iterdir())]
        series = {s.name.sequence: s for s in find_series(brainix)}
        reference = series["t1n"]
        order = geometry_of(reference).order
        assert len(made) == len(order)
        for new, own in zip(made, order, strict=True):
            old = pydicom.dcmread(reference.file_of(own), stop_before_pixels=True)
            assert new.ImagePositionPatient == pytest.approx(list(old.ImagePositionPatient), abs=1e-3)
            assert new.SliceThickness == old.SliceThickness
            assert new.StudyInstanceUID == old.StudyInstanceUID
            assert len(new.SourceImageSequence) == 3
        assert 100 < np.stack([d.pixel_array for d in made]).max() <= 32767

    @pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
    def test_dciodvfy_finds_no_error_of_ours(self, completed):
        file = completed / "b-t1c-dicom" / "0003.dcm"
        said = subprocess.run(["dciodvfy", str(file)], check=False, capture_output=True, text=True).stderr
        errors = [line for line in said.splitlines() if line.startswith("Error")]
        assert not [line for line in errors if not any(known in line for known in _KNOWN)]


def test_series_of_several_makers_are_read_or_refused(data_dir, tmp_path):
    folder = _unpacked(data_dir, "vendors.tar.xz", tmp_path) / "small"
    read = {
        "ge/anatomical/001": (4, 256, 256),
        "ge/anatomical/001_implicit": (4, 256, 256),
        "generic/compressed_jpegls/001": (4, 256, 256),
        "siemens_multiframe/anatomical/001": (256, 256, 8),
        "hyperfine/anatomical/001": (112, 138, 8),
    }
    for place, shape in read.items():
        (series,) = find_series(folder / place)
        assert read_series(series).data.shape == shape, place
    refused = {"generic/rgb/001": "is in colour", "ge/anatomical/001_single_slice": "has 1 slices, at least 3"}
    for place, reason in refused.items():
        (series,) = find_series(folder / place)
        with pytest.raises(VolumeError, match=reason):
            read_series(series)
