from __future__ import annotations

import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from app.cli import main
from app.core.errors import UsageError
from app.evaluation.scoring import find_pairs, score_pair


class TestEvaluate:
    def test_without_segmentations_it_says_so(self, run_folder, complete, tmp_path):
        real = shutil.copytree(complete, tmp_path / "real", ignore=shutil.ignore_patterns("*seg*"))
        pairs, problems = find_pairs(run_folder / "out", real)
        assert len([p for p in problems if "no segmentation" in p]) == 3
        assert "official_healthy" in score_pair(pairs[0]).values

    def test_no_pair_at_all(self, tmp_path, complete):
        (tmp_path / "out").mkdir()
        with pytest.raises(UsageError, match="counterpart"):
            find_pairs(tmp_path / "out", complete)

    def test_storage_order_of_either_file_does_not_matter(self, run_folder, complete, tmp_path):
        pair = find_pairs(run_folder / "out", complete)[0][0]
        straight = score_pair(pair).values
        image = nib.load(pair.prediction)
        axes = nib.orientations.axcodes2ornt(tuple("RAS"))
        moved = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), axes))
        nib.save(moved, tmp_path / pair.prediction.name)
        assert score_pair(replace(pair, prediction=tmp_path / pair.prediction.name)).values == straight

    def test_what_lacks_is_empty_or_twice_there_is_named(self, run_folder, complete, tmp_path, capsys):
        made = shutil.copytree(run_folder / "out", tmp_path / "made")
        gone, empty, twice = sorted(made.glob("*-t1n.nii.gz"))
        gone.unlink()
        image = nib.load(empty)
        nib.save(nib.Nifti1Image(np.zeros(image.shape, np.int16), image.affine), empty)
        (made / "more").mkdir()
        shutil.copy(twice, made / "more")
        code = main(["evaluate", "--prediction", str(made), "--reference", str(complete), "--jobs", "1"])
        captured = capsys.readouterr()
        assert code == 1
        subject = gone.name.removesuffix("-t1n.nii.gz")
        assert f"has no t1n of {subject}, and all four of others" in captured.err
        assert f"{empty} has the same value (0) everywhere" in captured.err
        assert f"{made / 'more' / twice.name} is left out" in captured.err
        assert "| all | 11 |" in captured.out

    def test_links_are_followed(self, run_folder, complete, tmp_path):
        (tmp_path / "real").mkdir()
        for folder in complete.iterdir():
            (tmp_path / "real" / folder.name).symlink_to(folder)
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "all").symlink_to(run_folder / "out")
        (tmp_path / "made" / "loop").symlink_to(tmp_path / "made")
        pairs, problems = find_pairs(tmp_path / "made", tmp_path / "real")
        assert (len(pairs), problems) == (12, [])
        assert all(p.segmentation is not None for p in pairs)
