from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.errors import EmptyVolumeError, VolumeError
from app.data.nifti_reader import file_sha256, find_emptiness, load_volume, read_grid
from app.data.nifti_writer import to_image

RANDOM = np.random.default_rng(0)
DATA = RANDOM.integers(1, 1000, (33, 40, 36)).astype(np.float64)


def _write(path: Path, data: np.ndarray = DATA, affine: np.ndarray | None = None, dtype: type = np.int16) -> Path:
    image = nib.Nifti1Image(data.astype(dtype), np.diag([-1.0, -1, 1, 1]) if affine is None else affine)
    nib.save(image, path)
    return path


class TestReading:
    def test_scaling_is_applied(self, tmp_path):
        image = nib.Nifti1Image(DATA.astype(np.int16), np.diag([-1.0, -1, 1, 1]))
        raw = bytearray(image.to_bytes())
        raw[112:120] = struct.pack("<2f", 0.5, 10.0)
        path = tmp_path / "a.nii"
        path.write_bytes(raw)
        np.testing.assert_allclose(load_volume(path).data, DATA * 0.5 + 10)

    def test_float64_becomes_float32(self, tmp_path):
        volume = load_volume(_write(tmp_path / "a.nii.gz", DATA, dtype=np.float64))
        assert volume.data.dtype == np.float32
        np.testing.assert_array_equal(volume.data, DATA)

    def test_nan_infinity_and_negatives_become_zero_and_are_counted(self, tmp_path):
        data = DATA.copy()
        data[0, 0, :3] = np.nan
        data[1, 1, 1] = np.inf
        data[2, 2, :5] = -7
        volume = load_volume(_write(tmp_path / "a.nii.gz", data, dtype=np.float32))
        assert np.isfinite(volume.data).all()
        assert volume.data.min() == 0
        assert any("4 voxels that were NaN or infinite" in n for n in volume.notes)
        assert any("5 negative voxels" in n for n in volume.notes)

    @pytest.mark.parametrize("shift", [-500.0, "z"])
    def test_z_scored_or_shifted_intensities_are_refused(self, tmp_path, shift):
        data = (DATA - DATA.mean()) / DATA.std() if shift == "z" else DATA + shift
        with pytest.raises(VolumeError, match="z-scored or shifted"):
            load_volume(_write(tmp_path / "a.nii.gz", data, dtype=np.float32))

    def test_a_background_that_is_not_zero_is_cleared_and_noted(self, tmp_path):
        brain = np.zeros_like(DATA)
        brain[8:-8, 8:-8, 8:-8] = DATA[8:-8, 8:-8, 8:-8]
        volume = load_volume(_write(tmp_path / "a.nii.gz", np.where(brain > 0, brain, -12.25), dtype=np.float32))
        np.testing.assert_array_equal(volume.data, brain)
        assert volume.notes == (f"{tmp_path}/a.nii.gz: its background of -12.25 was set to 0.",)
        strict = load_volume(
            _write(tmp_path / "b.nii.gz", np.where(brain > 0, brain, 3), dtype=np.float32), strict=True
        )
        assert strict.data[0, 0, 0] == 3

    def test_traces_around_nothing_count_as_empty(self, tmp_path):
        noise = np.full_like(DATA, -5.0)
        noise[16, 16, 16] = -4
        with pytest.raises(VolumeError):
            load_volume(_write(tmp_path / "a.nii.gz", noise, dtype=np.float32))

    def test_values_beyond_float32_are_said_to_be_so(self, tmp_path):
        with pytest.raises(EmptyVolumeError, match="not finite"):
            load_volume(_write(tmp_path / "a.nii.gz", np.where(DATA > 500, 1e202, 0.0), dtype=np.float64))

    def test_trailing_axis_of_one_is_accepted(self, tmp_path):
        volume = load_volume(_write(tmp_path / "a.nii.gz", DATA[..., None]))
        assert volume.data.shape == DATA.shape
        assert to_image(volume.data, volume.grid).shape == DATA.shape

    def test_several_volumes_are_refused(self, tmp_path):
        path = _write(tmp_path / "a.nii.gz", np.stack([DATA] * 3, axis=-1))
        with pytest.raises(VolumeError, match="holds 3 volumes"):
            load_volume(path)

    @pytest.mark.parametrize("value", [0, 7])
    def test_constant_counts_as_empty(self, tmp_path, value):
        with pytest.raises(EmptyVolumeError, match="same value"):
            load_volume(_write(tmp_path / "a.nii.gz", np.full_like(DATA, value)))

    def test_nowhere_finite_counts_as_empty(self, tmp_path):
        with pytest.raises(EmptyVolumeError, match="no finite voxel"):
            load_volume(_write(tmp_path / "a.nii.gz", np.full_like(DATA, np.nan), dtype=np.float32))

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_emptiness_is_found_without_loading_what_has_content(self, tmp_path, suffix):
        full = read_grid(_write(tmp_path / f"a{suffix}"))
        empty = read_grid(_write(tmp_path / f"b{suffix}", np.zeros((64, 64, 64))))
        assert find_emptiness(full) is None
        assert "counts as missing" in (find_emptiness(empty) or "")

    def test_neither_sform_nor_qform_is_read_with_a_note(self, tmp_path):
        image = nib.Nifti1Image(DATA.astype(np.int16), None)
        image.header["qform_code"] = image.header["sform_code"] = 0
        nib.save(image, tmp_path / "a.nii.gz")
        volume = load_volume(tmp_path / "a.nii.gz")
        assert any("neither sform nor qform" in n for n in volume.notes)

    def test_two_thin_axes_are_refused_with_advice(self, tmp_path):
        path = _write(tmp_path / "a.nii.gz", RANDOM.integers(0, 9, (512, 512, 30)))
        with pytest.raises(VolumeError, match=r"512x512x30 voxels.*resample"):
            read_grid(path)


class TestChecksum:
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_it_is_that_of_the_files_bytes(self, tmp_path, suffix):
        path = _write(tmp_path / f"a{suffix}")
        expected = hashlib.sha256(path.read_bytes()).hexdigest()
        assert load_volume(path).sha256 == load_volume(path, strict=True).sha256 == file_sha256(path) == expected

    def test_a_file_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(VolumeError, match=r"a\.nii cannot be read"):
            file_sha256(tmp_path / "a.nii")


class TestDamage:
    def test_absurd_header_is_refused_before_memory_is_taken(self, tmp_path):
        raw = bytearray(nib.Nifti1Image(DATA.astype(np.int16), np.eye(4)).to_bytes())
        raw[40:48] = struct.pack("<4h", 3, 32000, 32000, 32000)
        for name, content in (("a.nii", bytes(raw)), ("a.nii.gz", gzip.compress(bytes(raw)))):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(VolumeError, match="32000x32000x32000"):
                load_volume(tmp_path / name)

    @pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
    def test_truncated_gzip(self, tmp_path, share):
        path = _write(tmp_path / "a.nii.gz")
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(VolumeError, match="copy"):
            load_volume(path)

    def test_truncated_plain_file_is_known_from_its_header(self, tmp_path):
        path = _write(tmp_path / "a.nii")
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(VolumeError, match="truncated"):
            read_grid(path)

    def test_flipped_bit_in_the_stream(self, tmp_path):
        path = _write(tmp_path / "a.nii.gz")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(VolumeError):
            load_volume(path)

    # Without names the time in gzip's header would be one, and another for each process that collects the tests.
    @pytest.mark.parametrize(
        "content", [b"", b"patient notes", gzip.compress(b"patient notes" * 100)], ids=["empty", "text", "gzip"]
    )
    def test_no_nifti_at_all(self, tmp_path, content):
        path = tmp_path / "a.nii.gz"
        path.write_bytes(content)
        with pytest.raises(VolumeError, match=r"a\.nii\.gz"):
            read_grid(path)

    def test_broken_link(self, tmp_path):
        (tmp_path / "a.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
        with pytest.raises(VolumeError, match="broken link"):
            read_grid(tmp_path / "a.nii.gz")

    def test_no_permission(self, tmp_path, unprivileged):
        import os

        if os.getuid() == 0:
            os.seteuid(0)
            tmp_path.chmod(0o755)
        path = _write(tmp_path / "a.nii.gz")
        path.chmod(0)
        if os.getuid() == 0:
            for parent in tmp_path.parents:
                if parent.owner() == "root" and not parent.stat().st_mode & 0o001:
                    parent.chmod(parent.stat().st_mode | 0o011)
            os.seteuid(65534)
        with pytest.raises(VolumeError, match="may not be read"):
            read_grid(path)

    def test_singular_affine(self, tmp_path):
        raw = bytearray(nib.Nifti1Image(DATA.astype(np.int16), np.eye(4)).to_bytes())
        raw[252:256] = struct.pack("<2h", 0, 1)
        raw[280:328] = struct.pack("<12f", *([0.0] * 12))
        (tmp_path / "a.nii").write_bytes(raw)
        with pytest.raises(VolumeError, match="affine"):
            read_grid(tmp_path / "a.nii")


def _affine(axes: tuple[int, int, int], signs: tuple[int, int, int], tilt: float) -> np.ndarray:
    matrix = np.zeros((3, 3))
    for column, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        matrix[axis, column] = sign * (1 + 0.1 * column)
    c, s = np.cos(tilt), np.sin(tilt)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ matrix
    affine[:3, 3] = 5, -6, 7
    return affine


orientations = st.builds(
    _affine,
    st.permutations([0, 1, 2]).map(tuple),
    st.tuples(*[st.sampled_from([-1, 1])] * 3),
    st.floats(-0.3, 0.3),
)


class TestOrientation:
    @settings(max_examples=25, deadline=None)
    @given(affine=orientations)
    def test_reading_and_writing_are_inverse(self, affine, tmp_path_factory):
        folder = tmp_path_factory.mktemp("o")
        volume = load_volume(_write(folder / "a.nii.gz", affine=affine))
        assert nib.aff2axcodes(volume.grid.lps_affine) == ("L", "P", "S")
        image = to_image(volume.data, volume.grid)
        np.testing.assert_array_equal(np.asarray(image.dataobj), DATA)
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)

    @settings(max_examples=25, deadline=None)
    @given(affine=orientations)
    def test_the_same_anatomy_lies_at_the_same_index(self, affine, tmp_path_factory):
        folder = tmp_path_factory.mktemp("o")
        one = nib.Nifti1Image(DATA.astype(np.int16), affine)
        other = nib.as_closest_canonical(one)
        nib.save(one, folder / "a.nii.gz")
        nib.save(other, folder / "b.nii.gz")
        a, b = load_volume(folder / "a.nii.gz"), load_volume(folder / "b.nii.gz")
        np.testing.assert_array_equal(a.data, b.data)
        assert a.grid.same_as(b.grid)

    @pytest.mark.parametrize("shift,same", [(0.05, True), (0.2, False)])
    def test_a_tenth_of_a_voxel_tells_grids_apart(self, tmp_path, shift, same):
        affine = np.diag([-1.0, -1, 1, 1])
        a = read_grid(_write(tmp_path / "a.nii.gz", affine=affine))
        affine[0, 3] = shift
        assert a.same_as(read_grid(_write(tmp_path / "b.nii.gz", affine=affine))) is same

    def test_a_qform_that_float32_rounded_is_the_grid_of_its_sform(self, tmp_path):
        affine = _affine((0, 1, 2), (-1, 1, 1), 0.0087)
        image = nib.Nifti1Image(DATA.astype(np.int16), affine)
        for code in (0, 1):
            image.set_qform(affine, 1)
            image.set_sform(affine, code)
            nib.save(image, tmp_path / f"{code}.nii")
        one, other = read_grid(tmp_path / "0.nii"), read_grid(tmp_path / "1.nii")
        assert one.same_as(other)
        # The same qform, but an sform of a registration: another grid.
        moved = affine.copy()
        moved[:3, 3] += 5
        image.set_sform(moved, 2)
        nib.save(image, tmp_path / "2.nii")
        assert not one.same_as(read_grid(tmp_path / "2.nii"))

    def test_a_turn_counts_at_the_far_corner(self, tmp_path):
        a = read_grid(_write(tmp_path / "a.nii.gz", affine=_affine((0, 1, 2), (-1, -1, 1), 0.0)))
        b = read_grid(_write(tmp_path / "b.nii.gz", affine=_affine((0, 1, 2), (-1, -1, 1), 0.01)))
        assert not a.same_as(b)
