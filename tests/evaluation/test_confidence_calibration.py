"""Expected against observed errors: the metric, and the command that reads written maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from app.cli import main
from app.core.constants import MODALITIES
from app.data.nifti_reader import load_volume
from app.data.nifti_writer import save_image, to_image
from app.data.phantom import make_phantom, write_phantom
from app.evaluation.confidence_calibration import compare_errors

SHAPE = (40, 44, 36)


class TestCompare:
    def test_brightness_and_contrast_are_no_error_of_the_map(self):
        random = np.random.default_rng(0)
        truth = random.normal(500, 80, 5000).astype(np.float32)
        expected, observed, written = compare_errors(truth * 3 + 7, truth, np.full(5000, 0.5, np.float32))
        np.testing.assert_allclose(observed, 0, atol=1e-4)
        np.testing.assert_allclose(expected, 1, atol=1e-6)
        assert written > 5

    def test_the_unit_is_the_real_sequences_deviation(self):
        random = np.random.default_rng(0)
        score, noise = random.normal(size=(2, 200_000))
        # What a network makes that knows half of the variance, in any unit.
        made = (40 * 0.5 * (score + noise) + 300).astype(np.float32)
        truth = (900 * score + 4000).astype(np.float32)
        _, observed, _ = compare_errors(made, truth, np.full(200_000, 0.7, np.float32))
        assert len(observed) == 50_000
        assert observed.mean() == pytest.approx(np.abs(0.5 * (score + noise) - score).mean(), rel=0.02)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Truth, predictions with known errors, and maps that say how large these are."""
    place = tmp_path_factory.mktemp("calibration")
    (place / "made").mkdir()
    (place / "maps").mkdir()
    random = np.random.default_rng(0)
    for number in range(2):
        write_phantom(make_phantom(SHAPE, number), place / "real", f"s{number}")
        for modality in MODALITIES:
            volume = load_volume(place / "real" / f"s{number}" / f"s{number}-{modality}.nii.gz")
            brain = volume.data > 0
            unit = volume.data[brain].std()
            scale = np.where(np.indices(SHAPE)[0] % 2, 0.05, 0.4).astype(np.float32)
            error = random.laplace(0, scale).astype(np.float32)
            made = np.where(brain, np.maximum(volume.data + unit * error, 1), 0).astype(np.float32)
            name = f"s{number}-{modality}"
            save_image(to_image(made, volume.grid), place / "made" / f"{name}.nii.gz")
            sure = np.where(brain, 1 / (1 + scale), 0).astype(np.float32)
            image = to_image(sure, volume.grid, dtype=np.dtype(np.float32))
            save_image(image, place / "maps" / f"{name}-confidence.nii.gz")
    return place


class TestCommand:
    def _call(self, folders, *more):
        return main(["evaluate", "--prediction", str(folders / "made"), "--reference", str(folders / "real"), "--jobs",
                     "1", *map(str, more)])  # fmt: skip

    def test_table_plot_and_report(self, folders, tmp_path, capsys):
        assert self._call(folders, "--confidence", folders / "maps", "--out", tmp_path / "out") == 0
        lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("|")]
        start = next(i for i, x in enumerate(lines) if x.startswith("| confidence"))
        rows = {x.split("|")[1].strip(): x.split("|")[2:-1] for x in lines[start + 2 :]}
        assert set(rows) == {"all", *MODALITIES}
        assert int(rows["all"][0]) == 8
        found = json.loads((tmp_path / "out" / "summary.json").read_text())["calibration"]["all"]
        assert found["error"] < 0.08
        np.testing.assert_allclose(found["expected"][0], 0.05, atol=1e-3)
        np.testing.assert_allclose(found["expected"][-1], 0.4, atol=1e-3)
        np.testing.assert_allclose(found["observed"][-1], 0.4, rtol=0.15)
        assert (tmp_path / "out" / "calibration.png").stat().st_size > 1000
        page = (tmp_path / "out" / "report.html").read_text()
        assert "Calibration of the confidence" in page
        assert "Confidence: expected and observed error" in page

    def test_without_the_option_nothing_of_it(self, folders, tmp_path, capsys):
        assert self._call(folders, "--out", tmp_path / "out") == 0
        assert "rank correlation" not in capsys.readouterr().out
        assert "Calibration of the confidence" not in (tmp_path / "out" / "report.html").read_text()
        assert "calibration" not in json.loads((tmp_path / "out" / "summary.json").read_text())

    def test_a_map_that_lacks_or_is_none_is_named(self, folders, tmp_path, capsys):
        maps = tmp_path / "maps"
        maps.mkdir()
        for path in (folders / "maps").glob("s1*"):
            (maps / path.name).write_bytes(path.read_bytes())
        (maps / "s1-t1n-confidence.nii.gz").write_bytes((folders / "made" / "s1-t1n.nii.gz").read_bytes())
        assert self._call(folders, "--confidence", maps) == 1
        captured = capsys.readouterr()
        assert "s0-t1c-confidence.nii.gz" in captured.err
        assert "is no map of confidence" in captured.err
        assert "| all | 3 |" in captured.out

    def test_a_folder_that_is_not_there(self, folders, tmp_path, capsys):
        assert self._call(folders, "--confidence", tmp_path / "none") == 2
        assert "of the maps does not exist" in capsys.readouterr().err
