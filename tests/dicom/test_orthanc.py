"""What an archive does with a made series: stored once, found, got, moved, listed and shown."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest

from app.data.nifti_writer import to_image
from app.dicom.derived import Made, derived_series
from app.dicom.series import find_series, read_series
from tests.dicom.helpers import T1, head, write_series

pytest.importorskip("pynetdicom", reason="pynetdicom is not installed")

ROOT = Path(__file__).parents[2]
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
ALONE = ["unshare", "--net"]


@pytest.fixture
def archive():
    if shutil.which("Orthanc") is None or not PLUGIN.exists():
        pytest.skip("Orthanc is not installed (Debian: orthanc orthanc-dicomweb)")
    if shutil.which("ip") is None:
        pytest.skip("ip is not installed (Debian: iproute2)")
    if shutil.which("unshare") is None or subprocess.run([*ALONE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("a network of its own is not allowed here")


@pytest.fixture
def made(tmp_path):
    """The files of a made T1c beside the T1 that it was made from."""
    write_series(tmp_path / "t1", head(), FrameOfReferenceUID="1.2.9", **T1)
    (source,) = find_series(tmp_path / "t1")
    volume = read_series(source)
    image = to_image(volume.data, volume.grid)
    result = Made("t1c", np.asarray(image.dataobj, np.float32), image.affine, "unet 12345678", "0.2",
                  datetime(2026, 1, 2, tzinfo=UTC))  # fmt: skip
    (tmp_path / "made").mkdir()
    for number, content in enumerate(derived_series(result, source, [source])):
        (tmp_path / "made" / f"{number}.dcm").write_bytes(content)
    return tmp_path / "made"


def test_a_made_series_in_an_archive(archive, made, tmp_path):
    (tmp_path / "orthanc").mkdir()
    command = [
        *ALONE,
        sys.executable,
        "-m",
        "tests.dicom.orthanc_visit",
        str(tmp_path / "orthanc"),
        str(made),
        str(PLUGIN),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    images = [pydicom.dcmread(f) for f in made.iterdir()]
    content = {d.SOPInstanceUID: [d.PixelData.hex(), "YES"] for d in images}
    # A second sending adds nothing.
    assert seen["counts"] == [len(images)] * 2
    assert seen["got"] == content
    assert seen["moved"] == content
    assert seen["description"] == seen["listed"] == images[0].SeriesDescription
    assert bytes.fromhex(seen["picture"]) == b"\x89PNG"
