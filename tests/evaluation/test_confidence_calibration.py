"""Expected against observed errors: the metric, and the command that reads written maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli import main
from app.core.constants import MODALITIES
from app.data.nifti_reader import load_volume
from app.data.nifti_writer import save_image, to_image
from app.data.phantom import make_phantom, write_phantom
from app.evaluation.confidence_calibration import compare_errors
from app.evaluation.metrics.calibration import calibrate

SHAPE = (40, 44, 36)


def _laplace(scale: np.ndarray, seed: int = 0) -> np.ndarray:
    return np.abs(np.random.default_rng(seed).laplace(0, scale))


class TestMetric:
    def test_a_perfectly_calibrated_case_lies_on_the_diagonal(self):
        expected = np.random.default_rng(1).uniform(0.1, 2, 200_000)
        found = calibrate(expected, _laplace(expected))
        np.testing.assert_allclose(found.observed, found.expected, rtol=0.05)
        assert found.error < 0.02
        assert found.correlation > 0.3
        assert (np.diff(found.expected) > 0).all()

    def test_one_that_is_twice_too_sure_is_told_so(self):
        scale = np.random.default_rng(1).uniform(0.1, 2, 100_000)
        found = calibrate(scale / 2, _laplace(scale))
        np.testing.assert_allclose(found.observed, 2 * found.expected, rtol=0.05)
        assert found.error == pytest.approx(scale.mean() / 2, rel=0.03)

    def test_by_hand(self):
        found = calibrate(np.array([4.0, 1, 2, 3]), np.array([0.0, 1, 3, 5]), bins=2)
        np.testing.assert_allclose(found.expected, [1.5, 3.5])
        np.testing.assert_allclose(found.observed, [2.0, 2.5])
        assert found.error == pytest.approx(0.75)
        assert found.counts.tolist() == [2, 2]
        # Ranks 4 1 2 3 against 1 2 3 4.
        assert found.correlation == pytest.approx(-0.2)

    @given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=10, max_size=60), st.randoms())
    def test_laws(self, pairs, random):
        values = np.array(pairs)
        found = calibrate(values[:, 0], values[:, 1])
        assert found.counts.sum() == len(pairs)
        assert found.counts.max() - found.counts.min() <= 1
        np.testing.assert_allclose((found.expected * found.counts).sum(), values[:, 0].sum(), atol=1e-9)
        np.testing.assert_allclose((found.observed * found.counts).sum(), values[:, 1].sum(), atol=1e-9)
        assert (np.diff(found.expected) >= -1e-12).all()
        # The bins' differences may cancel within a bin, never beyond: not less than the difference of the means.
        gap = abs(values[:, 0].mean() - values[:, 1].mean())
        assert gap - 1e-9 <= found.error <= np.abs(values[:, 0] - values[:, 1]).mean() + 1e-9
        random.shuffle(pairs)
        if len({e for e, _ in pairs}) == len(pairs):
            again = np.array(pairs)
            assert calibrate(again[:, 0], again[:, 1]).error == pytest.approx(found.error)

    def test_ranks_are_those_of_scipy(self):
        from scipy.stats import spearmanr

        random = np.random.default_rng(0)
        one, other = random.integers(0, 20, (2, 500)).astype(float)
        assert calibrate(one, other).correlation == pytest.approx(spearmanr(one, other).statistic)
        assert np.isnan(calibrate(np.ones(20), one[:20]).correlation)

    @pytest.mark.parametrize(
        "expected,observed",
        [(np.ones(9), np.ones(9)), (np.ones(20), np.ones(19)), (np.full(20, np.nan), np.ones(20)),
         (np.ones(20), -np.ones(20))],
    )  # fmt: skip
    def test_what_cannot_be(self, expected, observed):
        with pytest.raises(ValueError):
            calibrate(expected, observed)


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
