"""The shipped networks that make exams, on the average brain of their atlas."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

from app.cli import main
from app.core.config import WEIGHTS_DIR
from app.core.constants import MODALITIES
from app.inference.simulation.atlas import read_atlas
from app.registry.manifest import read_manifest


def _make_exam(place: Path, *options: str) -> dict[str, np.ndarray]:
    """An exam of a round lesion in the average brain, and its labels as `seg`."""
    frame = read_atlas(read_manifest(WEIGHTS_DIR).entry("cgsamr").path_of("atlas")).frame
    centre = np.array([frame.shape[0] * 0.36, frame.shape[1] * 0.42, frame.shape[2] * 0.55])
    apart = np.linalg.norm(np.moveaxis(np.indices(frame.shape), 0, -1) - centre, axis=-1)
    labels = np.select([apart < 7, apart < 11, apart < 18], [1, 3, 2], 0).astype(np.uint8)
    nib.save(nib.Nifti1Image(labels, frame.matrix), place / "own-seg.nii.gz")
    output = place / "out"
    command = ["simulate", "--lesions", str(place / "own-seg.nii.gz"), "--output", str(output), "--seed", "4", *options]
    assert main(command) == 0
    exam = output / "synthetic-4-0000"
    images = {m: nib.load(exam / f"{exam.name}-{m}.nii.gz") for m in MODALITIES}
    assert all(i.header["descrip"].item().startswith(b"SYNTHETIC exam") for i in images.values())
    seg = np.asarray(nib.load(exam / f"{exam.name}-seg.nii.gz").dataobj)
    np.testing.assert_array_equal(seg, labels)
    return {"seg": seg, **{m: np.asarray(image.dataobj, dtype=float) for m, image in images.items()}}


def test_a_lesion_of_ones_own_becomes_an_exam(tmp_path):
    exam = _make_exam(tmp_path)
    seg, t1c, t2f = exam["seg"], exam["t1c"], exam["t2f"]
    healthy = (t1c > 0) & (seg == 0)
    # A bright rim around a dark core in T1c, bright oedema in T2-FLAIR.
    assert np.median(t1c[seg == 3]) > 1.5 * np.median(t1c[healthy])
    assert np.median(t1c[seg == 1]) < 0.8 * np.median(t1c[seg == 3])
    assert np.median(t2f[seg == 2]) > 1.3 * np.median(t2f[healthy])
    (record,) = json.loads((tmp_path / "out" / "simulated.json").read_text())["exams"]
    assert record["stripes"]


def test_the_unpaired_one_makes_lesions_that_are_no_holes(tmp_path):
    exam = _make_exam(tmp_path, "--model", "ucgsamr")
    seg, t1n, t2f = exam["seg"], exam["t1n"], exam["t2f"]
    healthy = (t1n > 0) & (seg == 0)
    assert np.median(t2f[seg == 2]) > 1.1 * np.median(t2f[healthy])
    assert np.percentile(t1n[seg > 0], 1) > 0.2 * np.median(t1n[healthy])


def test_the_unpaired_one_finds_a_tumour_that_it_never_saw(data_dir, tmp_path):
    (exam,) = (data_dir / "shift").iterdir()
    shutil.copytree(exam, tmp_path / "in" / exam.name, ignore=shutil.ignore_patterns("*-seg*"))
    command = ["segment", "--model", "ucgsamr", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main([*command, "--device", "cpu"]) == 0
    (made,) = (tmp_path / "out").rglob("*.nii.gz")
    truth, found = (np.asarray(nib.load(p).dataobj) > 0 for p in (exam / f"{exam.name}-seg.nii.gz", made))
    assert 2 * (truth & found).sum() / (truth.sum() + found.sum()) > 0.5
