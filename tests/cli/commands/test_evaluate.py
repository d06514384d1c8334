from __future__ import annotations

import csv
import json
import re
import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from app.cli import build_parser, main
from app.cli.commands.evaluate import TUMOUR_SEGMENTER
from app.core.constants import MODALITIES
from app.core.errors import UsageError

SHAPE = (40, 44, 36)


class TestEvaluate:
    def test_table_csv_and_summary(self, run_folder, complete, capsys, tmp_path):
        code = main(["evaluate", "--prediction", str(run_folder / "out"), "--reference", str(complete),
                     "--out", str(tmp_path / "s")])  # fmt: skip
        assert code == 0
        assert "| all | 12 |" in capsys.readouterr().out
        rows = list(csv.DictReader((tmp_path / "s" / "scores.csv").read_text().splitlines()))
        assert {(r["subject"], r["sequence"]) for r in rows} == {
            (c.name, m) for c in complete.iterdir() for m in MODALITIES
        }
        assert {r["tumour_type"] for r in rows} == {"GLI", "MET"}
        summary = json.loads((tmp_path / "s" / "summary.json").read_text())
        mine = [float(r["value"]) for r in rows if r["metric"] == "ssim_brain" and r["sequence"] == "t1c"]
        assert summary["scores"]["t1c"]["ssim_brain"]["mean"] == pytest.approx(np.mean(mine))
        assert summary["scores"]["t1c"]["ssim_brain"]["n"] == 3
        assert summary["scores"]["type GLI"]["ssim_brain"]["n"] == 8
        assert summary["problems"] == []

    def test_nothing_is_dropped_in_silence(self, run_folder, complete, tmp_path, capsys):
        made = shutil.copytree(run_folder / "out", tmp_path / "out")
        real = shutil.copytree(complete, tmp_path / "real")
        names = sorted(p.name for p in made.iterdir())
        image = nib.load(made / names[0])
        broken = np.asarray(image.dataobj).astype(np.float32)
        broken[3, 3, 3] = np.nan
        nib.save(nib.Nifti1Image(broken, image.affine), made / names[0])
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), np.diag([-2.0, -2, 2, 1])), made / names[1])
        shutil.copy(made / names[2], made / "stranger-t1c.nii.gz")
        lonely = sorted(real.iterdir())[2].name
        for path in made.glob(f"{lonely}*"):
            path.unlink()
        mask = next((real / names[4].rsplit("-", 1)[0]).glob("*seg*"))
        nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), image.affine), mask)
        code = main(["evaluate", "--prediction", str(made), "--reference", str(real), "--jobs", "1",
                     "--out", str(tmp_path / "s")])  # fmt: skip
        messages = capsys.readouterr().err
        assert code == 1
        assert re.search(rf"{names[0]} holds NaN", messages)
        assert re.search(rf"{names[1]} is not on the grid of .* at 2x2x2 mm", messages)
        assert "stranger-t1c.nii.gz has no counterpart" in messages
        assert f"{lonely} of {real} has no prediction" in messages
        assert "seg.nii.gz is empty" in messages
        assert "is not on the grid" in (tmp_path / "s" / "report.html").read_text()

    def test_an_out_that_is_a_file_is_known_at_once(self, run_folder, complete, tmp_path, capsys):
        (tmp_path / "s").write_text("")
        code = main(["evaluate", "--prediction", str(run_folder / "out"), "--reference", str(complete),
                     "--out", str(tmp_path / "s")])  # fmt: skip
        assert code == 2
        assert "cannot be used" in capsys.readouterr().err

    def test_a_worse_folder_is_told_from_a_better(self, run_folder, complete, tmp_path, capsys):
        worse = tmp_path / "worse"
        worse.mkdir()
        for path in (run_folder / "out").iterdir():
            image = nib.load(path)
            data = np.asarray(image.dataobj)
            noise = np.random.default_rng(0).normal(1, 0.5, data.shape)
            nib.save(nib.Nifti1Image(np.maximum(data * noise, 0).astype(np.int16), image.affine), worse / path.name)
        code = main(["evaluate", "--prediction", str(run_folder / "out"), "--reference", str(complete),
                     "--against", str(worse), "--out", str(tmp_path / "s")])  # fmt: skip
        assert code == 0
        result = json.loads((tmp_path / "s" / "summary.json").read_text())["comparison"]["ssim_brain"]
        assert 0 < result["low"] <= result["difference"] <= result["high"]
        # The least that three subjects can give.
        assert result["p"] == pytest.approx(0.25)
        assert "95 % interval" in capsys.readouterr().out

    def test_segmentations_are_scored_too(self, run_folder, complete, tmp_path, capsys):
        masks = tmp_path / "masks"
        masks.mkdir()
        for path in complete.rglob("*seg.nii.gz"):
            shutil.copy(path, masks)
        code = main(["evaluate", "--prediction", str(run_folder / "out"), "--reference", str(complete),
                     "--predicted-segmentations", str(masks)])  # fmt: skip
        assert code == 0
        assert "| dice_ET | 3 | 1.000 |" in capsys.readouterr().out

    def test_segmentations_alone_and_in_pairs(self, complete, tmp_path, capsys):
        for name, kept in (("all", (1, 2, 3)), ("part", (2, 3))):
            (tmp_path / name).mkdir()
            for path in complete.rglob("*seg.nii.gz"):
                image = nib.load(path)
                labels = np.asarray(image.dataobj)
                labels = np.where(np.isin(labels, kept), labels, 0).astype(np.uint8)
                nib.save(nib.Nifti1Image(labels, image.affine), tmp_path / name / path.name)
        code = main(["evaluate", "--reference", str(complete), "--predicted-segmentations", str(tmp_path / "part"),
                     "--segmentations-against", str(tmp_path / "all"), "--out", str(tmp_path / "s")])  # fmt: skip
        assert code == 0
        assert "| dice_ET | 3 | 1.000 |" in capsys.readouterr().out
        result = json.loads((tmp_path / "s" / "summary.json").read_text())["segmentation_comparison"]
        assert result["dice_TC"]["high"] < 0
        assert result["dice_ET"]["difference"] == 0

    @pytest.mark.parametrize(
        "arguments,message",
        [
            ([], "nothing to score"),
            (["--predicted-segmentations", "a", "--downstream"], "--downstream is of synthesised sequences"),
            (["--prediction", "a", "--segmentations-against", "b"], "give both"),
        ],
    )
    def test_options_without_anything_to_work_on(self, arguments, message, tmp_path, capsys):
        assert main(["evaluate", "--reference", str(tmp_path), *arguments]) == 2
        assert message in capsys.readouterr().err


class TestTumourSegmenter:
    ARGUMENTS = ("evaluate", "--prediction", "a", "--reference", "b", "--downstream")

    @pytest.mark.parametrize("option", ["--tumour-segmenter", "--judge"])
    def test_the_former_option_still_works(self, option):
        assert build_parser().parse_args([*self.ARGUMENTS, option, "mine"]).tumour_segmenter == "mine"

    def test_the_former_option_is_not_shown(self, capsys):
        assert build_parser().parse_args(self.ARGUMENTS).tumour_segmenter == TUMOUR_SEGMENTER
        with pytest.raises(SystemExit):
            main(["evaluate", "--help"])
        text = capsys.readouterr().out
        assert "--tumour-segmenter" in text
        assert "judge" not in text

    @pytest.mark.parametrize("names,expected", [({TUMOUR_SEGMENTER, "judge"}, TUMOUR_SEGMENTER), ({"judge"}, "judge")])
    def test_a_folder_of_weights_may_have_the_former_name(self, tmp_path, monkeypatch, names, expected):
        manifest = SimpleNamespace(entries=names, entry=lambda name: name)
        opened = []

        def refuse(entry, device):
            opened.append((entry, device))
            raise UsageError("seen enough")

        monkeypatch.setattr("app.registry.manifest.read_manifest", lambda _: manifest)
        monkeypatch.setattr("app.inference.tumour.segmentation.TumourSegmenter.open", refuse)
        assert main([*self.ARGUMENTS, "--weights", str(tmp_path)]) == 2
        assert opened == [(expected, "auto")]
