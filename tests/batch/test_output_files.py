from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from app.batch.run import run
from tests.batch.helpers import config_of


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
        assert again.outputs[0].provenance.fusion == "mean+flip"
        text = nib.load(tmp_path / "out" / "a-t2f.nii.gz").header["descrip"].item().decode()
        assert text.endswith(" mean+flip")

    def test_overwrite_makes_all_again(self, three, weights_dir):
        run(config_of(three, weights_dir))
        assert {o.status for o in run(config_of(three, weights_dir, overwrite=True)).outcomes} == {"made"}

    def test_files_of_others_in_the_output_stay(self, three, weights_dir):
        (three / "out").mkdir()
        (three / "out" / "notes.txt").write_text("mine")
        run(config_of(three, weights_dir))
        assert (three / "out" / "notes.txt").read_text() == "mine"
