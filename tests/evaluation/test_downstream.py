"""What `evaluate --downstream` reports of the 3D tumour segmenter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from app.cli import main
from app.core.constants import MODALITIES
from app.core.errors import ExitCode
from app.data.phantom import make_phantom, write_phantom
from app.evaluation.downstream import REAL, downstream_summary, score_downstream
from app.evaluation.scoring import VolumeScores, find_pairs
from app.inference.tumour.segmentation import TumourSegmenter
from app.networks.architectures import UNetConfig
from app.networks.unet3d import Segmenter3d
from app.registry.manifest import read_manifest, write_entry
from app.registry.spec import GeneratorSpec
from app.training.data.cache import NORMALIZATION
from app.training.data.sections import SliceData
from tests.networks.small_models import save_segmenter3d

SMALL = ["data.patch=[32,32,32]", "schedule.epoch_steps=1000"]


class TestNetwork:
    def test_it_gives_classes_of_every_voxel_at_every_level(self):
        network = Segmenter3d((4, 8, 8))
        assert network.factor == 4
        levels = network.deep(torch.zeros(2, 4, 16, 8, 12))
        assert [tuple(v.shape) for v in levels] == [(2, 4, 16, 8, 12), (2, 4, 8, 4, 6)]
        assert torch.equal(network(torch.zeros(2, 4, 16, 8, 12)), levels[0])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed in range(2):
        write_phantom(make_phantom((40, 44, 36), seed), folder, f"s{seed}")
    return folder


def segmenter_of(seed=0, window=(32, 32, 32)) -> TumourSegmenter:
    torch.manual_seed(seed)
    return TumourSegmenter(Segmenter3d((4, 8)).eval(), NORMALIZATION, window, torch.device("cpu"))


class TestDownstream:
    def test_the_real_sequence_in_its_own_place_keeps_everything(self, data, tmp_path):
        shutil.copy(data / "s0" / "s0-t1c.nii.gz", tmp_path / "s0-t1c.nii.gz")
        image = nib.load(data / "s0" / "s0-t2f.nii.gz")
        nib.save(nib.Nifti1Image(np.zeros(image.shape, np.int16) + 5, image.affine), tmp_path / "s0-t2f.nii.gz")
        pairs, _ = find_pairs(tmp_path, data)
        rows = {s.modality: s.values for s in score_downstream(pairs, segmenter_of())}
        assert set(rows) == {REAL, "t1c", "t2f"}
        assert all(rows["t1c"][f"own_dice_{r}"] == 1 for r in ("WT", "TC", "ET"))
        assert {k: v for k, v in rows["t1c"].items() if not k.startswith("own")} == rows[REAL]
        # A grey block in the place of the FLAIR is seen.
        assert rows["t2f"]["own_dice_WT"] < 1
        summary = downstream_summary(score_downstream(pairs, segmenter_of()))
        assert summary["t1c"]["kept_WT"] == pytest.approx(1)
        assert summary["mean"]["n"] == 2

    def test_an_empty_volume_is_scored_like_any_other(self, data, tmp_path):
        image = nib.load(data / "s0" / "s0-t1c.nii.gz")
        nib.save(nib.Nifti1Image(np.zeros(image.shape, np.int16), image.affine), tmp_path / "s0-t1c.nii.gz")
        pairs, _ = find_pairs(tmp_path, data)
        rows = score_downstream(pairs, segmenter_of())
        assert [(r.modality, r.problems) for r in rows] == [(REAL, []), ("t1c", [])]
        assert rows[1].values["own_dice_WT"] < 1

    def test_what_is_kept_is_a_share_of_the_same_subjects(self):
        names = [f"{metric}_{region}" for region in ("WT", "TC", "ET") for metric in ("dice", "nsd1", "hd95")]
        easy, hard = dict.fromkeys(names, 0.9), dict.fromkeys(names, 0.5)
        rows = [VolumeScores("a", REAL, easy), VolumeScores("b", REAL, hard)]
        rows += [VolumeScores("a", "t1c", easy), VolumeScores("b", "t2w", hard)]
        rows += [VolumeScores("b", "t2f", problems=["unreadable"])]
        summary = downstream_summary(rows)
        assert [summary[g]["kept_WT"] for g in ("t1c", "t2w", "mean")] == pytest.approx([1, 1, 1])

    def test_nothing_is_found_outside_the_brain(self, data):
        volumes = {m: nib.load(data / "s0" / f"s0-{m}.nii.gz").get_fdata(dtype=np.float32) for m in MODALITIES}
        labels = segmenter_of(seed=1).segment(volumes)
        assert labels.any()
        assert not labels[sum((v > 0).astype(int) for v in volumes.values()) < 2].any()

    def test_memory_that_runs_out_is_a_problem_and_no_traceback(self, data, tmp_path, monkeypatch):
        def exhausted(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        segmenter = segmenter_of()
        monkeypatch.setattr(segmenter.network, "forward", exhausted)
        shutil.copy(data / "s0" / "s0-t1c.nii.gz", tmp_path)
        pairs, _ = find_pairs(tmp_path, data)
        (row,) = score_downstream(pairs, segmenter)
        assert "use --device cpu" in row.problems[0]

    def test_what_cannot_be_scored_is_a_problem_with_a_name(self, data, tmp_path):
        made = tmp_path / "made"
        made.mkdir()
        shutil.copytree(data, tmp_path / "real")
        (tmp_path / "real" / "s0" / "s0-seg.nii.gz").unlink()
        (tmp_path / "real" / "s1" / "s1-t2w.nii.gz").unlink()
        for subject in ("s0", "s1"):
            shutil.copy(data / subject / f"{subject}-t1c.nii.gz", made)
        pairs, _ = find_pairs(made, tmp_path / "real")
        problems = [p for s in score_downstream(pairs, segmenter_of()) for p in s.problems]
        assert len(problems) == 2
        assert "s0 has no segmentation" in problems[0]
        assert "s1 has no real t2w" in problems[1]


@pytest.fixture(scope="module")
def weights(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    write_phantom(make_phantom((40, 44, 36), 9), folder / "unseen", "new")
    arguments = [a for s in (*SMALL, "schedule.steps=2", "data.held_out=0") for a in ("--set", s)]
    code = main(["train", "judge", "--data", str(data), "--run", str(folder / "run"), *arguments,
                 "--validation", str(folder / "unseen"), "--set", "schedule.validate_every=1"])  # fmt: skip
    assert code == ExitCode.OK
    assert (folder / "run" / "best.pt").is_file()
    assert list((folder / "run" / "samples").glob("*.png"))
    code = main(["export", str(folder / "run"), "--data", str(data), "--weights", str(folder / "w"), "--model",
                 "judge", "--score-on", str(folder / "unseen")])  # fmt: skip
    assert code == ExitCode.OK
    return folder


GENERATOR = GeneratorSpec(architecture=UNetConfig(), normalization=NORMALIZATION, canvas=SliceData().canvas,
                          views=("axial",))  # fmt: skip


class TestCommands:
    """Trained, exported, asked."""

    def test_it_is_in_the_manifest_and_nobodys_default(self, weights, tmp_path, capsys):
        manifest = read_manifest(weights / "w")
        entry = manifest.entries["judge"]
        assert (entry.spec.kind, manifest.default, entry.spec.window) == ("segmenter3d", None, (32, 32, 32))
        assert "dice_ET" in manifest.lineage.scores_of(entry.sha256).mean
        write_phantom(make_phantom((40, 44, 36)), tmp_path / "in", "new", leave_out=("t1n",))
        code = main(["synthesize", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--weights",
                     str(weights / "w"), "--model", "judge"])  # fmt: skip
        assert code == ExitCode.WEIGHTS
        assert "makes no sequence" in capsys.readouterr().err
        assert main(["info", "--weights", str(weights / "w")]) == ExitCode.OK
        assert "judge: segmenter3d" in capsys.readouterr().out

    def test_evaluate_reports_what_it_found(self, weights, tmp_path, capsys):
        made = tmp_path / "made"
        made.mkdir()
        shutil.copy(weights / "unseen" / "new" / "new-t1c.nii.gz", made)
        code = main(["evaluate", "--prediction", str(made), "--reference", str(weights / "unseen"), "--downstream",
                     "--weights", str(weights / "w"), "--out", str(tmp_path / "out"), "--jobs", "1"])  # fmt: skip
        assert code == ExitCode.OK
        shown = capsys.readouterr().out
        assert f"| {REAL} | 1 |" in shown
        assert "100 %" in shown
        # Against itself the segmenter's own result says nothing.
        assert shown.count(f"| {REAL} | 1 |") == 1
        assert "| t1c | 1 | 1.000 | 1.000 | 0.0 |" in shown.partition("against own result")[2]
        page = (tmp_path / "out" / "report.html").read_text()
        assert page.count("The tumour as a segmenter finds it") == 2
        results = json.loads((tmp_path / "out" / "summary.json").read_text())["downstream"]
        assert results["t1c"]["own_hd95_WT"] == 0
        assert "own_nsd1_TC" in (tmp_path / "out" / "scores.csv").read_text()

    def test_no_model_takes_the_place_of_one_that_does_something_else(self, weights, data, tmp_path, capsys):
        folder = shutil.copytree(weights / "w", tmp_path / "w")
        write_entry(folder, "unet", GENERATOR, {"torch": b"none"})
        before = (folder / "manifest.json").read_bytes()
        for more in ((), ("--force",)):
            code = main(["export", str(weights / "run"), "--data", str(data), "--weights", str(folder),
                         "--model", "unet", "--score-on", str(weights / "unseen"), *more])  # fmt: skip
            assert code == ExitCode.USAGE
            assert "is a generator; give the segmenter3d another name" in capsys.readouterr().err
        assert (folder / "manifest.json").read_bytes() == before

    def test_without_a_segmenter_it_says_so_before_scoring(self, weights, tmp_path, capsys):
        arguments = ["evaluate", "--prediction", str(tmp_path), "--reference", str(weights / "unseen"), "--downstream"]
        assert main([*arguments, "--weights", str(weights / "w"), "--tumour-segmenter", "solomon"]) == ExitCode.WEIGHTS
        assert "no model 'solomon'" in capsys.readouterr().err
        write_entry(tmp_path / "u", "unet", GENERATOR, {"torch": b"none"})
        assert main([*arguments, "--weights", str(tmp_path / "u"), "--tumour-segmenter", "unet"]) == ExitCode.WEIGHTS
        assert "is a generator, not a segmenter3d" in capsys.readouterr().err
        save_segmenter3d(tmp_path / "v", "other", (4, 8), Segmenter3d((4, 8)).state_dict(), NORMALIZATION, (32, 32, 32))
        (tmp_path / "v" / "other.safetensors").write_bytes(b"not weights")
        assert main([*arguments, "--weights", str(tmp_path / "v"), "--judge", "other"]) == ExitCode.WEIGHTS
        assert "does not match its checksum" in capsys.readouterr().err
