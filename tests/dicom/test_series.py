from __future__ import annotations

import io
import re

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from app.core.errors import VolumeError
from app.dicom.series import find_series, read_series
from app.dicom.timing import Timing
from tests.dicom.helpers import FLAIR, T1, T2, change, head, write_frames, write_series

_LATE = {"EchoTime": "90"}


def _only(folder):
    (series,) = find_series(folder)
    return series


def test_series_are_found_at_any_depth_among_other_files(tmp_path):
    write_series(tmp_path / "a" / "b", head(), number=2, **T1)
    write_series(tmp_path / "c", head(), number=1, **FLAIR)
    (tmp_path / "c" / "readme.txt").write_text("no DICOM")
    found = find_series(tmp_path)
    assert [(s.number, len(s.files), s.name.sequence) for s in found] == [(1, 8, "t2f"), (2, 8, "t1n")]


def test_voxels_lie_where_the_headers_say(tmp_path):
    volume = head()
    write_series(tmp_path, volume, **T1)
    read = read_series(_only(tmp_path))
    assert read.grid.shape == (48, 40, 8)
    assert read.data.shape == (48, 40, 8)
    np.testing.assert_array_equal(read.data, volume.transpose(1, 0, 2))
    # The mark: column 6, row 4, slice 1; its place in millimetres L, P, S.
    place = read.grid.affine @ [6, 4, 1, 1]
    np.testing.assert_allclose(place[:3] * [-1, -1, 1], [-20 + 6 * 1.0, -24 + 4 * 1.5, 15], atol=1e-5)


@pytest.mark.parametrize(
    "orientation",
    [(1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, 0.0, 0.0, -1.0), (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
     (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)],
    ids=["axial", "sagittal", "coronal", "axial, feet first and prone"],
)  # fmt: skip
def test_right_stays_right_in_every_orientation(tmp_path, orientation):
    volume = head()
    write_series(tmp_path, volume, orientation=orientation, spacing=(1.0, 1.0, 1.0), **T1)
    read = read_series(_only(tmp_path))
    normal = np.cross(orientation[:3], orientation[3:])
    marked = np.argwhere(volume == 2000)
    places = [
        np.array([-20.0, -24.0, 10.0]) + c * np.array(orientation[:3]) + r * np.array(orientation[3:]) + s * normal
        for r, c, s in marked
    ]
    found = np.argwhere(read.data == 2000)
    own = [(read.grid.lps_affine @ [*index, 1])[:3] * [-1, -1, 1] for index in found]
    np.testing.assert_allclose(sorted(map(tuple, np.round(own, 3))), sorted(map(tuple, np.round(places, 3))), atol=1e-3)


def test_a_slice_that_lacks_is_interpolated_and_said(tmp_path):
    volume = np.repeat(np.arange(30, dtype=np.int16)[None, None] * 10, 40, axis=0).repeat(40, axis=1)
    paths = write_series(tmp_path, volume, **T2)
    paths[12].unlink()
    read = read_series(_only(tmp_path))
    assert read.data.shape[2] == 30
    assert read.data[5, 5, 12] == 120
    assert any("lacks 1 of 30 slices" in note for note in read.notes)


def test_a_copy_of_a_slice_is_left_out_and_another_slice_at_its_place_is_not(tmp_path):
    write_series(tmp_path, head(), **T1)
    extra = write_series(tmp_path / "again", head()[:, :, :1], **T1)
    change(extra[0], SOPInstanceUID="9.9")
    read = read_series(_only(tmp_path))
    assert read.data.shape[2] == 8
    assert any("twice" in note for note in read.notes)
    write_series(tmp_path / "again", head()[:, :, :1] + 1, **T1)
    with pytest.raises(VolumeError, match="different slices at one place"):
        read_series(_only(tmp_path))


def test_a_folder_that_holds_an_export_twice_is_read_once(tmp_path, caplog):
    for place in ("a", "b"):
        write_series(tmp_path / place, head(), **T1)
    assert len(_only(tmp_path).files) == 8
    assert "second copy of an image" in caplog.text


def test_folders_are_left_out(tmp_path):
    write_series(tmp_path / "a", head(), **T1)
    write_series(tmp_path / "out", head(), number=2, **T2)
    assert [s.number for s in find_series(tmp_path, [tmp_path / "out"])] == [1]


@pytest.mark.parametrize("content", ["cut", "text"])
def test_a_damaged_file_is_named_and_never_taken_for_a_gap(tmp_path, content):
    paths = write_series(tmp_path, head(slices=30), **T1)
    whole = paths[12].read_bytes()
    paths[12].write_bytes(whole[:300] if content == "cut" else b"damaged")
    with pytest.raises(VolumeError, match=re.escape(str(paths[12]))):
        find_series(tmp_path)


def test_a_file_without_preamble_is_read(tmp_path):
    paths = write_series(tmp_path, head(), **T1)
    dataset = pydicom.dcmread(paths[7])
    plain = io.BytesIO()
    pydicom.dcmwrite(plain, Dataset(dict(dataset.items())), implicit_vr=True, little_endian=True)
    paths[7].write_bytes(plain.getvalue())
    assert len(_only(tmp_path).files) == 8


def test_stacks_of_two_echoes_are_no_volume(tmp_path):
    """Interleaved at half the spacing they would look like one."""
    write_series(tmp_path / "a", head(), **T1)
    for n, path in enumerate(write_series(tmp_path / "b", head(), origin=(-20.0, -24.0, 12.5), **{**T1, **_LATE})):
        change(path, SOPInstanceUID=f"7.{n}")
    assert "holds several echoes" in _only(tmp_path).name.why


def test_magnitude_and_phase_are_no_volume(tmp_path):
    paths = write_series(tmp_path, head(), **T1)
    change(paths[2], ImageType=["ORIGINAL", "PRIMARY", "P"])
    assert "several kinds of images" in _only(tmp_path).name.why


@pytest.mark.parametrize(
    "agent,sequence", [("NONE", "t1n"), ("no contrast", "t1n"), ("n/a", "t1n"), ("Dotarem", "t1c")]
)
def test_an_agent_is_one_and_not_a_word_for_none(tmp_path, agent, sequence):
    write_series(tmp_path, head(), ContrastBolusAgent=agent, **T1)
    assert _only(tmp_path).name.sequence == sequence


def test_files_of_many_frames_say_their_echo_otherwise(tmp_path):
    write_frames(tmp_path / "many.dcm", head(), [10.0 + 5 * i for i in range(8)])
    frames = {"ScanningSequence": None, "EchoTime": None, "RepetitionTime": None, "SeriesDescription": "AX"}
    change(tmp_path / "many.dcm", EchoPulseSequence="GRADIENT", **frames)
    dataset = pydicom.dcmread(tmp_path / "many.dcm")
    shared = dataset.SharedFunctionalGroupsSequence[0]
    echo, timing = Dataset(), Dataset()
    echo.EffectiveEchoTime, timing.RepetitionTime = 20.0, 600.0
    shared.MREchoSequence, shared.MRTimingAndRelatedParametersSequence = [echo], [timing]
    dataset.save_as(tmp_path / "many.dcm")
    series = _only(tmp_path)
    assert series.header.timing == Timing(("GR",), 20.0, 600.0)
    assert "long echo" in series.name.why


def test_a_series_that_was_scored_is_refused_and_single_negatives_are_said(tmp_path):
    volume = head()
    volume[10, 10, 3] = -1
    write_series(tmp_path / "a", volume, **T1)
    assert any("1 negative voxels were set to 0" in note for note in read_series(_only(tmp_path / "a")).notes)
    write_series(tmp_path / "b", volume - 250, **T1)
    with pytest.raises(VolumeError, match=r"series 1 .* was z-scored or shifted"):
        read_series(_only(tmp_path / "b"))
    write_series(tmp_path / "c", volume * 0, **T1)
    with pytest.raises(VolumeError, match="the same value everywhere"):
        read_series(_only(tmp_path / "c"))


def test_rescaling_is_applied(tmp_path):
    write_series(tmp_path, head(), RescaleSlope="2", RescaleIntercept="5", **T1)
    np.testing.assert_allclose(read_series(_only(tmp_path)).data, head().transpose(1, 0, 2) * 2.0 + 5)


@pytest.mark.parametrize(
    "tags,message",
    [
        ({"Modality": "CT"}, "is CT, not MR"),
        ({"SamplesPerPixel": 3}, "is in colour"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "is stored inverted"),
        ({"SyntheticData": "YES"}, "was synthesised"),
    ],
)
def test_series_that_are_no_scan(tmp_path, tags, message):
    write_series(tmp_path, head(), **{**T1, **tags})
    series = _only(tmp_path)
    assert message in series.name.why
    assert series.name.sequence is None
    with pytest.raises(VolumeError, match=message):
        read_series(series)


def test_files_of_two_patients_are_no_series(tmp_path):
    paths = write_series(tmp_path, head(), **T1)
    change(paths[3], PatientID="P2")
    assert "several patients" in _only(tmp_path).name.why


def test_tilted_slices_are_refused_by_name(tmp_path):
    positions = [(float(i) * 0.6, 0.0, 5.0 * i) for i in range(8)]
    write_series(tmp_path, head(), positions=positions, number=7, **T1)
    with pytest.raises(VolumeError, match=r"series 7 \(T1 SE, 8 slices\) has sheared slices"):
        read_series(_only(tmp_path))


def test_frames_of_one_file_are_ordered_by_place(tmp_path):
    volume = head()
    write_frames(tmp_path / "many.dcm", volume, [10.0 + 5 * i for i in range(8)][::-1])
    read = read_series(_only(tmp_path))
    np.testing.assert_array_equal(read.data, volume.transpose(1, 0, 2)[:, :, ::-1])


def test_two_stacks_in_one_file_of_frames_are_refused(tmp_path):
    write_frames(tmp_path / "many.dcm", head(), [10.0, 15.0, 20.0, 25.0] * 2)
    with pytest.raises(VolumeError, match="more than one stack"):
        read_series(_only(tmp_path))
