from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from app.data.nifti_reader import load_volume
from app.data.nifti_writer import encode_image, save_image, scale_to_type, to_image

RANDOM = np.random.default_rng(0)
DATA = RANDOM.integers(1, 1000, (33, 40, 36)).astype(np.float64)


def _write(path: Path, data: np.ndarray = DATA, affine: np.ndarray | None = None, dtype: type = np.int16) -> Path:
    image = nib.Nifti1Image(data.astype(dtype), np.diag([-1.0, -1, 1, 1]) if affine is None else affine)
    nib.save(image, path)
    return path


class TestWriting:
    @pytest.mark.parametrize("sform,qform", [(1, 0), (0, 1), (2, 1), (0, 0)])
    def test_header_is_that_of_the_reference(self, tmp_path, sform, qform):
        affine = np.array([[-0.9, 0.05, 0, 3], [0.05, -0.95, 0, 4], [0, 0, 1.1, 5], [0, 0, 0, 1.0]])
        image = nib.Nifti1Image(DATA.astype(np.int16), affine)
        image.set_qform(affine, code=qform)
        image.set_sform(affine, code=sform)
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, tmp_path / "a.nii.gz")
        volume = load_volume(tmp_path / "a.nii.gz")
        save_image(to_image(volume.data, volume.grid), tmp_path / "b.nii.gz")
        before, after = nib.load(tmp_path / "a.nii.gz"), nib.load(tmp_path / "b.nii.gz")
        for field in ("dim", "xyzt_units", "qform_code", "sform_code", "datatype", "quatern_b", "quatern_c",
                      "quatern_d", "qoffset_x", "srow_x", "srow_y", "srow_z"):  # fmt: skip
            np.testing.assert_array_equal(before.header[field], after.header[field], err_msg=field)
        np.testing.assert_array_equal(before.header["pixdim"][:4], after.header["pixdim"][:4])
        np.testing.assert_array_equal(before.affine, after.affine)

    def test_integers_are_rounded_with_slope_one(self, tmp_path):
        volume = load_volume(_write(tmp_path / "a.nii.gz"))
        content = gzip.decompress(encode_image(to_image(volume.data + np.float32(0.4), volume.grid)))
        assert struct.unpack("<2f", content[112:120]) == (1.0, 0.0)
        (tmp_path / "b.nii").write_bytes(content)
        np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "b.nii").dataobj), DATA)

    def test_eight_bits_are_widened_where_too_narrow(self, tmp_path):
        volume = load_volume(_write(tmp_path / "a.nii.gz", DATA % 200 + 1, dtype=np.uint8))
        assert to_image(volume.data, volume.grid).get_data_dtype() == np.uint8
        assert to_image(volume.data * 100, volume.grid).get_data_dtype() == np.int16

    @pytest.mark.parametrize("dtype", [np.int16, np.uint8])
    def test_what_exceeds_the_type_is_scaled_not_wrapped(self, tmp_path, dtype):
        volume = load_volume(_write(tmp_path / "a.nii.gz", DATA % 200 + 1, dtype=dtype))
        bright = volume.data * 1000
        fitted = scale_to_type(bright, volume.grid)
        np.testing.assert_allclose(fitted / fitted.max(), bright / bright.max(), rtol=1e-6)
        stored = np.asarray(to_image(fitted, volume.grid).dataobj)
        assert stored.dtype == np.int16
        assert stored.max() == 32767
        assert np.asarray(to_image(bright, volume.grid).dataobj).min() > 0

    def test_foreign_byte_order(self, tmp_path):
        image = nib.Nifti1Image(DATA.astype(">i2"), np.diag([-1.0, -1, 1, 1]), nib.Nifti1Header(endianness=">"))
        nib.save(image, tmp_path / "a.nii.gz")
        volume = load_volume(tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(volume.data, DATA)
        save_image(to_image(volume.data, volume.grid), tmp_path / "b.nii.gz")
        np.testing.assert_array_equal(load_volume(tmp_path / "b.nii.gz").data, DATA)

    def test_other_libraries_see_the_same_geometry(self, tmp_path):
        affine = np.array([[-0.9, 0, 0, 3], [0, -0.95, 0, 4], [0, 0, 1.1, 5], [0, 0, 0, 1.0]])
        volume = load_volume(_write(tmp_path / "a.nii.gz", affine=affine))
        save_image(to_image(volume.data, volume.grid), tmp_path / "b.nii.gz")
        a, b = sitk.ReadImage(str(tmp_path / "a.nii.gz")), sitk.ReadImage(str(tmp_path / "b.nii.gz"))
        assert a.GetOrigin() == b.GetOrigin()
        assert a.GetDirection() == b.GetDirection()
        assert a.GetSpacing() == b.GetSpacing()
        np.testing.assert_array_equal(sitk.GetArrayFromImage(a), sitk.GetArrayFromImage(b))

    def test_the_same_image_gives_the_same_bytes(self, tmp_path):
        volume = load_volume(_write(tmp_path / "a.nii.gz"))
        assert encode_image(to_image(volume.data, volume.grid)) == encode_image(to_image(volume.data, volume.grid))

    @pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
    def test_nothing_of_the_scan_but_its_geometry_is_written(self, tmp_path, kind):
        header = kind()
        spare = {"datatype", "bitpix", "sizeof_hdr", "dim", "pixdim", "magic", "vox_offset", "scl_slope", "scl_inter"}
        for name in set(header.keys()) - spare - {"qform_code", "sform_code", "eol_check"}:
            if header[name].dtype.kind == "S":
                header[name] = b"DOE^JANE"[: header[name].dtype.itemsize]
        header["cal_max"] = header["toffset"] = 77
        header["pixdim"][4:] = 77
        image = (nib.Nifti1Image if kind is nib.Nifti1Header else nib.Nifti2Image)(DATA.astype(np.int16), None, header)
        image.header.set_sform(np.diag([-1.0, -1, 1, 1]), 1)
        nib.save(image, tmp_path / "a.nii.gz")
        volume = load_volume(tmp_path / "a.nii.gz")
        content = to_image(volume.data, volume.grid, "synthetic").to_bytes()
        assert b"DOE" not in content
        written = type(image).from_bytes(content).header
        assert written["descrip"].item() == b"synthetic"
        assert not any(float(written[name]) for name in ("cal_max", "toffset"))
        assert list(written["pixdim"][4:]) == [1, 1, 1, 1]

    @pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
    def test_what_is_no_intensity_is_never_written(self, tmp_path, value):
        volume = load_volume(_write(tmp_path / "a.nii.gz"))
        volume.data[3, 3, 3] = value
        with pytest.raises(ValueError):
            to_image(volume.data, volume.grid)
