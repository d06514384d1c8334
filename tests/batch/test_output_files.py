from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from app.batch.run import run
from app.data.phantom import make_phantom
from app.registry.manifest import add_file, read_manifest
from tests.batch.helpers import config_of
from tests.conftest import SHAPE

pytestmark = pytest.mark.usefixtures("no_page")


class TestResume:
    def test_a_good_output_is_kept(self, three, weights_dir):
        run(config_of(three, weights_dir))
        before = {p: p.stat().st_mtime_ns for p in (three / "out").iterdir()}
        summary = run(config_of(three, weights_dir))
        assert {o.status for o in summary.outcomes} == {"kept"}
        assert {p: p.stat().st_mtime_ns for p in (three / "out").iterdir()} == before

    @pytest.mark.parametrize("fault", ["truncated", "other grid", "empty"])
    def test_a_bad_one_is_made_again(self, three, weights_dir, fault):
        run(config_of(three, weights_dir))
        path = three / "out" / "a-t2f.nii.gz"
        good = path.read_bytes()
        image = nib.load(path)
        if fault == "truncated":
            path.write_bytes(good[: len(good) // 2])
        elif fault == "other grid":
            nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[1:], image.affine), path)
        else:
            nib.save(nib.Nifti1Image(np.zeros(image.shape, np.int16), image.affine), path)
        summary = run(config_of(three, weights_dir))
        assert [o.status for o in summary.outcomes] == ["made", "kept", "kept"]
        assert path.read_bytes() == good

    def test_what_a_damaged_input_made_is_made_again_when_it_is_repaired(self, three, weights_dir, write_subject):
        run(config_of(three, weights_dir))
        before = (three / "out" / "b-t2f.nii.gz").read_bytes()
        write_subject(three / "in" / "b")
        summary = run(config_of(three, weights_dir))
        assert [o.status for o in summary.outcomes] == ["kept", "made", "kept"]
        assert (three / "out" / "b-t2f.nii.gz").read_bytes() != before

    def test_an_output_says_that_it_is_synthetic_and_what_made_it(self, three, weights_dir):
        run(config_of(three, weights_dir, model="tiny"))
        text = nib.load(three / "out" / "a-t2f.nii.gz").header["descrip"].item().decode()
        assert text.startswith("synthetic t2f from 3, tetrad ")
        assert "tiny" in text

    def test_what_was_made_in_another_way_is_kept_and_said(self, tmp_path, write_subject, weights_dir):
        write_subject(tmp_path / "in" / "a")
        (made,) = run(config_of(tmp_path, weights_dir, model="tiny")).outcomes
        assert made.outputs[0].provenance.fusion == "mean"
        (same,) = run(config_of(tmp_path, weights_dir, model="tiny")).outcomes
        assert (same.status, same.warnings) == ("kept", made.warnings)
        for options in ({"model": "tiny", "flip_average": True}, {"model": "tiny", "fusion": "median"}, {}):
            (kept,) = run(config_of(tmp_path, weights_dir, **options)).outcomes
            assert kept.status == "kept"
            assert "is kept as it is" in kept.warnings[-1]
            assert "--overwrite" in kept.warnings[-1]
        (again,) = run(config_of(tmp_path, weights_dir, model="tiny", flip_average=True, overwrite=True)).outcomes
        assert again.outputs[0].provenance.fusion == "mean+flip+step2"
        text = nib.load(tmp_path / "out" / "a-t2f.nii.gz").header["descrip"].item().decode()
        assert text.endswith(" mean+flip+step2")

    def test_overwrite_makes_all_again(self, three, weights_dir):
        run(config_of(three, weights_dir))
        assert {o.status for o in run(config_of(three, weights_dir, overwrite=True)).outcomes} == {"made"}

    def test_files_of_others_in_the_output_stay(self, three, weights_dir):
        (three / "out").mkdir()
        (three / "out" / "notes.txt").write_text("mine")
        run(config_of(three, weights_dir))
        assert (three / "out" / "notes.txt").read_text() == "mine"


class TestOtherInputs:
    @pytest.fixture
    def place(self, tmp_path, write_subject):
        write_subject(tmp_path / "in" / "a")
        return tmp_path

    @staticmethod
    def _another_patient(place):
        """Puts another exam under the names of the first."""
        other = make_phantom(SHAPE, seed=11)
        for path in (place / "in" / "a").iterdir():
            modality = path.name.removeprefix("a-").removesuffix(".nii.gz")
            nib.save(nib.Nifti1Image(other.volumes[modality].astype(np.int16), other.affine), path)

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_what_other_inputs_made_is_made_again(self, place, weights_dir, overwrite):
        (first,) = run(config_of(place, weights_dir)).outcomes
        self._another_patient(place)
        (again,) = run(config_of(place, weights_dir, overwrite=overwrite)).outcomes
        assert again.status == "made"
        assert again.outputs[0].sha256 != first.outputs[0].sha256
        assert set(again.input_sha256) == {"t1c", "t1n", "t2w"}
        assert not set(again.input_sha256.values()) & set(first.input_sha256.values())
        (kept,) = run(config_of(place, weights_dir)).outcomes
        assert (kept.status, kept.input_sha256) == ("kept", again.input_sha256)

    def test_one_input_is_enough(self, place, weights_dir, caplog):
        run(config_of(place, weights_dir))
        path = place / "in" / "a" / "a-t1c.nii.gz"
        image = nib.load(path)
        data = np.asarray(image.dataobj).copy()
        data[20, 20, 20] += 1
        nib.save(nib.Nifti1Image(data, image.affine), path)
        (again,) = run(config_of(place, weights_dir)).outcomes
        assert again.status == "made"
        assert "a-t2f.nii.gz was made from other inputs than are there now; it is made again." in caplog.text

    def test_it_is_kept_and_said_where_any_are_taken(self, place, weights_dir):
        (first,) = run(config_of(place, weights_dir)).outcomes
        self._another_patient(place)
        (kept,) = run(config_of(place, weights_dir, resume="any")).outcomes
        assert (kept.status, kept.outputs[0].sha256) == ("kept", first.outputs[0].sha256)
        assert "it was made from other inputs than are there now (--resume any)" in kept.warnings[0]
        assert kept.input_sha256 == {}

    @pytest.mark.parametrize("resume", ["same", "any"])
    def test_one_of_version_0_1_is_kept_and_said(self, place, weights_dir, resume):
        run(config_of(place, weights_dir))
        path = place / "out" / "a-t2f.nii.gz"
        image = nib.load(path)
        image.header["aux_file"] = b""
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), path)
        (kept,) = run(config_of(place, weights_dir, resume=resume)).outcomes
        assert kept.status == "kept"
        assert ["does not tell from which inputs" in w for w in kept.warnings] == [True]

    def test_a_scan_in_its_place_is_kept_and_said(self, place, weights_dir, phantom):
        (place / "out").mkdir()
        scan = nib.Nifti1Image(phantom.volumes["t2f"].astype(np.int16), phantom.affine)
        nib.save(scan, place / "out" / "a-t2f.nii.gz")
        (kept,) = run(config_of(place, weights_dir)).outcomes
        assert kept.status == "kept"
        assert ["nothing in it says that Tetrad made it" in w for w in kept.warnings] == [True]

    def test_a_map_of_confidence_says_its_inputs_too(self, place, confident_weights):
        run(config_of(place, confident_weights, model="unet", confidence_dir=place / "maps"))
        image, confidence = (nib.load(next(f.iterdir())) for f in (place / "out", place / "maps"))
        assert image.header["aux_file"].item().startswith(b"inputs ")
        assert image.header["aux_file"].item() == confidence.header["aux_file"].item()


def test_a_changed_intensity_file_makes_another_model(tmp_path, write_subject, weights_dir):
    write_subject(tmp_path / "in" / "a")
    weights = shutil.copytree(weights_dir, tmp_path / "w")
    (first,) = run(config_of(tmp_path, weights, report_dir=tmp_path / "report")).outcomes
    record = json.loads((tmp_path / "report" / "tetrad-run.json").read_text())
    entry = read_manifest(weights).entry("regression")
    form = json.loads(entry.path_of("intensity").read_text())
    form["coefficients"]["t1c+t1n+t2w>t2f"][1][0] += 0.5
    add_file(entry, "intensity", json.dumps(form).encode())
    (kept,) = run(config_of(tmp_path, weights, report_dir=tmp_path / "report")).outcomes
    assert kept.status == "kept"
    assert "is kept as it is: it was made as" in kept.warnings[-1]
    (again,) = run(config_of(tmp_path, weights, report_dir=tmp_path / "report", overwrite=True)).outcomes
    now = json.loads((tmp_path / "report" / "tetrad-run.json").read_text())
    assert now["model"]["sha256"] != record["model"]["sha256"]
    assert now["model"]["weights_sha256"] == record["model"]["weights_sha256"]
    assert again.outputs[0].sha256 != first.outputs[0].sha256
    assert again.outputs[0].provenance.model_sha256 != first.outputs[0].provenance.model_sha256


def test_a_subjects_name_may_fill_the_outputs(tmp_path, write_subject, weights_dir):
    name = "x" * (255 - len("-t2f.nii.gz"))
    write_subject(tmp_path / "in", {m: f"{name}-{m}.nii.gz" for m in ("t1c", "t1n", "t2f", "t2w")})
    for overwrite in (False, True):
        (outcome,) = run(config_of(tmp_path, weights_dir, overwrite=overwrite)).outcomes
        assert outcome.status == "made", outcome.error
    assert [p.name for p in (tmp_path / "out").iterdir()] == [f"{name}-t2f.nii.gz"]
