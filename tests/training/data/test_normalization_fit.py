"""Constants of a whole training set, from histograms."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.cli import main
from app.core.constants import MODALITIES
from app.core.errors import ExitCode, UsageError
from app.data.nifti_reader import load_volume
from app.data.phantom import make_phantom, write_phantom
from app.preprocessing.normalization import BRASYN25_INTENSITIES, Normalization
from app.training.config import load_recipe
from app.training.data.normalization_fit import IntensityHistogram


def _histogram(*volumes) -> IntensityHistogram:
    histogram = IntensityHistogram()
    for volume in volumes:
        histogram.add(np.asarray(volume, np.float32))
    return histogram


class TestHistogram:
    def test_by_hand(self):
        # Of 1, 2, ..., 5 the median is 3; clipped there they are 1, 2, 3, 3, 3: mean 2.4, variance 0.64.
        found = _histogram([0, 1, 2, -7], [3, 4, 5]).intensity(50)
        assert (found.clip, found.mean, found.std) == pytest.approx((3, 2.4, 0.8))

    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 999), scale=st.sampled_from([1e-3, 1.0, 3e4]), parts=st.integers(1, 4))
    def test_it_is_what_all_voxels_at_once_give(self, seed, scale, parts):
        voxels = (np.random.default_rng(seed).gamma(3, scale, 20000)).astype(np.float32)
        found = _histogram(*np.array_split(voxels, parts)).intensity()
        clip = np.percentile(voxels, 99.5)
        clipped = np.minimum(voxels, clip)
        assert found.clip == pytest.approx(clip, rel=2e-3)
        assert found.mean == pytest.approx(clipped.mean(dtype=np.float64), rel=1e-4)
        assert found.std == pytest.approx(clipped.std(dtype=np.float64), rel=1e-3)

    def test_background_and_negative_voxels_do_not_count(self):
        assert _histogram([0, -1, 5]).count == 1

    def test_nothing_has_no_percentile(self):
        with pytest.raises(ValueError, match="without voxels"):
            IntensityHistogram().intensity()

    def test_one_value_can_be_divided_by(self):
        found = _histogram([4, 4, 4]).intensity()
        assert (found.clip, found.mean, found.std) == (4, 4, 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("constants")
    for seed in range(2):
        write_phantom(make_phantom((40, 44, 36), seed), folder, f"s{seed}")
    write_phantom(make_phantom((40, 44, 36), 9), folder, "lacking", leave_out=("t1c",))
    return folder


class TestCommand:
    def test_from_a_folder_to_a_recipe(self, data, tmp_path, monkeypatch):
        file = tmp_path / "constants.json"
        assert main(["fit-normalization", "--data", str(data), "--out", str(file)]) == ExitCode.OK
        assert json.loads(file.read_text())["subjects"] == ["s0", "s1"]
        recipe = load_recipe(
            "smoke", ["normalization.scheme='dataset'", f"normalization.file='{file}'", "output.contrast=0"]
        )
        scheme = recipe.normalization.build()
        for modality in MODALITIES:
            volumes = [load_volume(data / f"s{i}" / f"s{i}-{modality}.nii.gz").data for i in range(2)]
            voxels = np.concatenate([v[v > 0] for v in volumes])
            clip = np.percentile(voxels, 99.5)
            assert scheme.intensities[modality].clip == pytest.approx(clip, rel=2e-3)
            assert scheme.intensities[modality].mean == pytest.approx(np.minimum(voxels, clip).mean(), rel=1e-3)
        # Beside a recipe, by its name alone; and the recipe needs the file no more.
        (tmp_path / "mine.toml").write_text('extends = "smoke"\n[normalization]\nscheme = "dataset"\n'
                                            'file = "constants.json"\n[output]\ncontrast = 0.0\n')  # fmt: skip
        monkeypatch.chdir("/")
        assert load_recipe(str(tmp_path / "mine.toml")).normalization == recipe.normalization

    def test_too_few_subjects(self, data, tmp_path, capsys):
        assert main(["fit-normalization", "--data", str(data / "s0"), "--out", str(tmp_path / "f")]) == ExitCode.USAGE
        assert "fewer than two" in capsys.readouterr().err
        assert not (tmp_path / "f").exists()


def test_what_a_recipe_says_of_it(tmp_path):
    assert load_recipe("smoke").normalization.build() == Normalization("volume", background=-1.0)
    published = load_recipe("smoke", ["normalization.scheme='dataset'", "output.contrast=0"]).normalization.build()
    assert published == Normalization("dataset", background=-1.0, intensities=BRASYN25_INTENSITIES)
    with pytest.raises(UsageError, match="make one with fit-normalization"):
        load_recipe("smoke", ["normalization.scheme='dataset'", f"normalization.file='{tmp_path / 'gone'}'"])
    with pytest.raises(UsageError, match="must name all four sequences"):
        load_recipe("smoke", ["normalization.scheme='dataset'",
                              "normalization.intensities={t1c={mean=1.0,std=1.0,clip=2.0}}"])  # fmt: skip
    with pytest.raises(UsageError, match=r"for normalization\.scheme = 'dataset'"):
        load_recipe("smoke", ["normalization.intensities={t1c={mean=1.0,std=1.0,clip=2.0}}"])
