from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from app.cli import main
from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.data.cases import plan
from app.data.discovery import scan
from app.data.phantom import make_phantom, write_phantom
from app.evaluation.baselines import score_baselines
from app.evaluation.missing_sequence_sets import draw_sequences, make_missing_sequence_set
from app.evaluation.scoring import VolumeScores, find_pairs, score_pair
from app.evaluation.statistics import compare, summarise
from app.report.html import Page, SubjectEntry, render

SHAPE = (40, 44, 36)


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("complete")
    for number in range(3):
        write_phantom(make_phantom(SHAPE, number), folder, f"BraTS-{'GLI' if number else 'MET'}-0000{number}-000")
    return folder


@pytest.fixture(scope="module")
def run_folder(complete, tmp_path_factory) -> Path:
    """Every sequence of every subject dropped in turn and made again."""
    place = tmp_path_factory.mktemp("run")
    assert main(["dropout", "--input", str(complete), "--output", str(place / "in"), "--each"]) == 0
    assert main(["synthesize", "--input", str(place / "in"), "--output", str(place / "out"),
                 "--report-dir", str(place / "report"), "--model", "regression"]) == 0  # fmt: skip
    return place


class TestDropout:
    def test_the_organisers_draw(self):
        random = np.random.RandomState(123456)
        assert draw_sequences(9) == [MODALITIES[i] for i in random.randint(0, 4, 9)]
        assert set(draw_sequences(40)) == set(MODALITIES)

    def test_one_of_each(self, complete, tmp_path):
        made = make_missing_sequence_set(complete, tmp_path / "out")
        cases = scan(tmp_path / "out").cases
        assert [(c.subject, plan(c).targets[0]) for c in cases] == made
        assert not list((tmp_path / "out").rglob("*seg*"))

    def test_each_in_turn(self, run_folder):
        cases = scan(run_folder / "in").cases
        assert len(cases) == 12
        assert {plan(c).targets for c in cases} == {(m,) for m in MODALITIES}

    def test_the_seed_decides(self, complete, tmp_path):
        drawn = [make_missing_sequence_set(complete, tmp_path / str(s), seed=s) for s in (1, 1 + 10**6, 2)]
        assert len({tuple(d) for d in drawn}) > 1

    def test_a_full_output_is_refused(self, complete, tmp_path):
        (tmp_path / "x").write_text("mine")
        with pytest.raises(UsageError, match="not empty"):
            make_missing_sequence_set(complete, tmp_path)

    def test_incomplete_subjects_are_named(self, complete, tmp_path, caplog):
        source = shutil.copytree(complete, tmp_path / "in")
        next(source.rglob("*GLI*t1n.nii.gz")).unlink()
        assert len(make_missing_sequence_set(source, tmp_path / "out")) == 2
        assert "is left out: it does not have all four" in caplog.text
        next(source.rglob("*MET*t1n.nii.gz")).write_bytes(b"no image")
        assert len(make_missing_sequence_set(source, tmp_path / "again")) == 1
        assert "is not gzip-compressed" in caplog.text


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

    def test_without_segmentations_it_says_so(self, run_folder, complete, tmp_path):
        real = shutil.copytree(complete, tmp_path / "real", ignore=shutil.ignore_patterns("*seg*"))
        pairs, problems = find_pairs(run_folder / "out", real)
        assert len([p for p in problems if "no segmentation" in p]) == 3
        assert "official_healthy" in score_pair(pairs[0]).values

    def test_an_out_that_is_a_file_is_known_at_once(self, run_folder, complete, tmp_path, capsys):
        (tmp_path / "s").write_text("")
        code = main(["evaluate", "--prediction", str(run_folder / "out"), "--reference", str(complete),
                     "--out", str(tmp_path / "s")])  # fmt: skip
        assert code == 2
        assert "cannot be used" in capsys.readouterr().err

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


class TestStatistics:
    def test_identical_folders_do_not_differ(self):
        scores = [VolumeScores(f"s{i}", "t1c", {"m": float(i)}) for i in range(5)]
        assert compare(scores, scores)["m"] == {"n": 5, "difference": 0, "low": 0, "high": 0, "p": 1}

    def test_a_subjects_sequences_are_no_witnesses_of_their_own(self):
        gains = {"a": 1.0, "b": 2.0, "c": 3.0}
        first = [VolumeScores(s, m, {"m": g}) for s, g in gains.items() for m in ("t1c", "t1n", "t2f", "t2w")]
        second = [VolumeScores(s.subject, s.modality, {"m": 0.0}) for s in first]
        result = compare(first, second)["m"]
        assert (result["n"], result["difference"]) == (12, 2)
        # Of the eight ways to give three subjects signs, two are as far from none.
        assert result["p"] == pytest.approx(2 / 8)

    def test_interval_covers_the_truth(self):
        random = np.random.default_rng(1)
        covered = 0
        for _ in range(40):
            first = [VolumeScores(f"s{i}", "t1c", {"m": 0.5 + random.normal()}) for i in range(25)]
            second = [VolumeScores(f"s{i}", "t1c", {"m": 0.0}) for i in range(25)]
            result = compare(first, second)["m"]
            covered += result["low"] <= 0.5 <= result["high"]
        assert covered >= 33

    def test_values_that_are_not_finite_are_counted_out(self):
        scores = [VolumeScores("a", "t1c", {"m": float("nan")}), VolumeScores("b", "t1c", {"m": 2.0})]
        assert summarise(scores)["all"]["m"]["n"] == 1
        assert summarise(scores)["all"]["m"]["mean"] == 2


def test_baselines_are_ordered(complete):
    results = score_baselines(complete, jobs=2)
    means = {name: np.mean([s.values["ssim_brain"] for s in scores]) for name, scores in results.items()}
    assert {len(s) for s in results.values()} == {12}
    assert means["all zero"] < min(means["best copy"], means["regression"])


class TestReport:
    def test_run_page(self, run_folder):
        text = (run_folder / "report" / "tetrad-run.html").read_text()
        assert "not for diagnosis" in text
        assert text.count("data:image/jpeg") == 12
        assert len(list((run_folder / "report" / "pictures").glob("*.png"))) == 12
        assert "http" not in re.sub(r"base64,[^\"]*", "", text)

    def test_warnings_come_first_and_text_is_escaped(self):
        page = Page("t", {"a": "b"}, failures=["<script>x</script> failed"], warnings=["careful"])
        text = render(page).decode()
        assert "<script>" not in text
        assert text.index("careful") < text.index("What was done")

    def test_a_hundred_subjects_stay_under_ten_megabytes(self, run_folder):
        image = max(
            re.findall(r"jpeg;base64,([^\"]*)", (run_folder / "report" / "tetrad-run.html").read_text()), key=len
        )
        real_sized = b"x" * 70_000
        page = Page("t", {}, subjects=[SubjectEntry(f"s{i}", "c", real_sized) for i in range(100)])
        assert len(image) * 3 / 4 < 70_000
        assert len(render(page)) < 10e6

    def test_it_renders_in_a_browser(self, run_folder, tmp_path):
        browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if browser is None:
            pytest.skip("no chromium here")
        shot = tmp_path / "page.png"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                   "--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars",
                   f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,3000", f"--screenshot={shot}",
                   (run_folder / "report" / "tetrad-run.html").as_uri()]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        import matplotlib.image

        pixels = matplotlib.image.imread(shot)[..., :3]
        # A page with a heading, a red notice and black picture panels; not a blank or an error page.
        assert pixels.shape[:2] == (3000, 1200)
        assert (pixels.max(axis=2) < 0.05).mean() > 0.1
        red = (pixels[..., 0] > 0.45) & (pixels[..., 1] < 0.2) & (pixels[..., 2] < 0.2)
        assert red[:300].sum() > 50
