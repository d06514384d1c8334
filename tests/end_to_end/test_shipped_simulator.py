"""The shipped network that makes exams, on the average brain of its atlas."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np

from app.cli import main
from app.core.config import WEIGHTS_DIR
from app.core.constants import MODALITIES
from app.inference.simulation.atlas import read_atlas
from app.registry.manifest import read_manifest


def test_a_lesion_of_ones_own_becomes_an_exam(tmp_path):
    frame = read_atlas(read_manifest(WEIGHTS_DIR).entry("cgsamr").path_of("atlas")).frame
    centre = np.array([frame.shape[0] * 0.36, frame.shape[1] * 0.42, frame.shape[2] * 0.55])
    apart = np.linalg.norm(np.moveaxis(np.indices(frame.shape), 0, -1) - centre, axis=-1)
    labels = np.select([apart < 7, apart < 11, apart < 18], [1, 3, 2], 0).astype(np.uint8)
    nib.save(nib.Nifti1Image(labels, frame.matrix), tmp_path / "own-seg.nii.gz")
    command = [
        "simulate",
        "--lesions",
        str(tmp_path / "own-seg.nii.gz"),
        "--output",
        str(tmp_path / "out"),
        "--seed",
        "4",
    ]
    assert main(command) == 0
    exam = tmp_path / "out" / "synthetic-4-0000"
    images = {m: nib.load(exam / f"{exam.name}-{m}.nii.gz") for m in MODALITIES}
    assert all(i.header["descrip"].item().startswith(b"SYNTHETIC exam") for i in images.values())
    seg = np.asarray(nib.load(exam / f"{exam.name}-seg.nii.gz").dataobj)
    np.testing.assert_array_equal(seg, labels)
    t1c, t2f = (np.asarray(images[m].dataobj, dtype=float) for m in ("t1c", "t2f"))
    healthy = (t1c > 0) & (seg == 0)
    # A bright rim around a dark core in T1c, bright oedema in T2-FLAIR.
    assert np.median(t1c[seg == 3]) > 1.5 * np.median(t1c[healthy])
    assert np.median(t1c[seg == 1]) < 0.8 * np.median(t1c[seg == 3])
    assert np.median(t2f[seg == 2]) > 1.3 * np.median(t2f[healthy])
    (record,) = json.loads((tmp_path / "out" / "simulated.json").read_text())["exams"]
    assert record["stripes"]
