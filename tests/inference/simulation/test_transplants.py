from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.data.discovery import scan
from app.data.loading import load_complete
from app.data.nifti_reader import load_volume
from app.data.phantom import make_phantom, write_phantom
from app.inference.simulation.lesion_patches import PlacedPatch
from app.inference.simulation.transplants import TransplantOptions, fading_weight, transplant, transplant_lesions
from tests.inference.simulation.helpers import SHAPE


def _patch(shape=(40, 40, 40), start=(0, 0, 0), score=2.0, brain=None):
    labels = np.zeros(shape, np.uint8)
    labels[18:22, 18:22, 18:22] = 3
    images = np.full((4, *shape), score, np.float32)
    return PlacedPatch(images, labels, np.ones(shape, bool) if brain is None else brain, start)


class TestWeight:
    def test_whole_in_the_lesion_and_nothing_at_the_faces(self):
        weight = fading_weight(_patch())
        assert (weight[18:22, 18:22, 18:22] == 1).all()
        assert weight[20, 20, 20 + 2 + 5] == 1
        assert 0 < weight[20, 20, 20 + 1 + 10] < 1
        assert weight[20, 20, 20 + 1 + 14] == 0
        assert weight[0].max() == weight[:, -1].max() == 0
        assert np.isclose(weight[:, 20, 20], weight[::-1, 20, 20]).all()

    def test_it_fades_where_its_patient_has_no_brain(self):
        brain = np.ones((40, 40, 40), bool)
        brain[:, :, 23:] = False
        weight = fading_weight(_patch(brain=brain))
        assert weight[:, :, 22:].max() == 0
        assert weight[20, 20, 19] == 1


class TestBlend:
    def test_as_bright_as_the_brain_that_receives_it(self):
        """A brain of mean 100 and deviation 10: a score of 2 is 120."""
        volume = np.zeros((48, 48, 48), np.float32)
        volume[2:46, 2:46, 2:46] = 90
        volume[2:46, 2:46, 2:46][::2] = 110
        brain = volume > 0
        labels = np.zeros(volume.shape, np.uint8)
        labels[8, 8, 8] = labels[24, 24, 24] = 1
        patch = _patch(start=(4, 4, 4))
        volumes = {m: volume * (1 + n) for n, m in enumerate(MODALITIES)}
        made, changed = transplant(volumes, labels, brain, patch, fading_weight(patch))
        for n, m in enumerate(MODALITIES):
            assert (made[m][22:26, 22:26, 22:26] == 120 * (1 + n)).all()
            assert np.array_equal(made[m][:4], volumes[m][:4])
            assert (made[m][~brain] == 0).all()
        assert (changed[22:26, 22:26, 22:26] == 3).all()
        assert changed[8, 8, 8] == 1
        assert np.count_nonzero(changed) == 65

    def test_outside_the_brain_there_is_nothing(self):
        volume = np.full((48, 48, 48), 100.0, np.float32)
        volume[:, :, 24:] = 0
        volume[::2, :, :24] = 120
        patch = _patch(start=(4, 4, 4))
        made, changed = transplant(
            dict.fromkeys(MODALITIES, volume), np.zeros(volume.shape, np.uint8), volume > 0, patch, fading_weight(patch)
        )
        assert (made["t1c"][:, :, 24:] == 0).all()
        assert (changed[:, :, 24:] == 0).all()
        assert (changed[:, :, :24] > 0).any()

    def test_small_units_keep_their_grey_levels(self):
        volume = np.full((48, 48, 48), 0.5, np.float32)
        volume[::2] = 1.0
        patch = _patch(start=(4, 4, 4), score=0.0)
        made, _ = transplant(
            dict.fromkeys(MODALITIES, volume), np.zeros(volume.shape, np.uint8), volume > 0, patch, fading_weight(patch)
        )
        assert made["t1c"].max() == 1000
        assert made["t1c"][0, 0, 0] == 1000
        assert made["t1c"][1, 0, 0] == 500


@pytest.fixture(scope="module")
def exams(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exams")
    for seed in range(1, 4):
        write_phantom(make_phantom(SHAPE, seed), folder, f"p{seed}")
    return folder


@pytest.fixture(scope="module")
def made(exams, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "made"
    return transplant_lesions(TransplantOptions(exams, exams, output, count=4, seed=5)), output


class TestExams:
    def test_they_are_read_as_complete_exams(self, made):
        records, output = made
        cases = scan(output).cases
        assert [c.subject for c in cases] == [r.name for r in records]
        assert len(dict(load_complete(cases))) == len(records) == 4

    def test_a_lesion_goes_into_the_brain_of_another(self, made):
        records, output = made
        assert {r.lesion for r in records} == {"p1", "p2", "p3"}
        assert all(r.lesion != r.brain and r.seen >= 0.5 for r in records)
        for r in records:
            labels = load_volume(output / r.name / f"{r.name}-seg.nii.gz").data
            lesion = make_phantom(SHAPE, int(r.lesion[1:])).labels
            assert (labels[lesion > 0] == lesion[lesion > 0]).mean() >= 0.5

    def test_they_say_that_they_are_synthetic(self, made):
        for path in made[1].rglob("*.nii.gz"):
            assert nib.load(path).header["descrip"].item().decode().startswith("SYNTHETIC exam, tetrad")
        record = json.loads((made[1] / "simulated.json").read_text())
        assert record["synthetic"] is True
        assert record["taught_by"] == []
        assert [e["name"] for e in record["exams"]] == [r.name for r in made[0]]

    def test_the_same_seed_makes_the_same_bytes(self, made, exams, tmp_path):
        transplant_lesions(TransplantOptions(exams, exams, tmp_path / "o", count=1, seed=5))
        for path in (tmp_path / "o").rglob("*.nii.gz"):
            assert path.read_bytes() == (made[1] / path.relative_to(tmp_path / "o")).read_bytes()

    def test_what_is_there_is_not_written_over(self, made, exams):
        with pytest.raises(UsageError, match="holds transplant-5-0000 already"):
            transplant_lesions(TransplantOptions(exams, exams, made[1], count=1, seed=5))


class TestRefusals:
    def test_the_output_lies_apart(self, exams, tmp_path):
        with pytest.raises(UsageError, match="lie in each other"):
            transplant_lesions(TransplantOptions(exams, exams, exams / "made"))
        with pytest.raises(UsageError, match=r"--lesions .* does not exist"):
            transplant_lesions(TransplantOptions(tmp_path / "none", exams, tmp_path / "o"))

    def test_nobody_receives_it(self, tmp_path):
        write_phantom(make_phantom(SHAPE, 1), tmp_path / "one", "p1")
        with pytest.raises(UsageError, match="holds no exam beside that of p1"):
            transplant_lesions(TransplantOptions(tmp_path / "one", tmp_path / "one", tmp_path / "o"))

    def test_different_grids(self, tmp_path):
        write_phantom(make_phantom(SHAPE, 1), tmp_path / "two", "p1")
        write_phantom(make_phantom((48, 44, 36), 2), tmp_path / "two", "p2")
        with pytest.raises(UsageError, match="are on different grids"):
            transplant_lesions(TransplantOptions(tmp_path / "two", tmp_path / "two", tmp_path / "o"))

    def test_an_exam_without_a_segmentation_receives_none(self, tmp_path, caplog):
        write_phantom(make_phantom(SHAPE, 1), tmp_path / "one", "p1")
        (tmp_path / "one" / "p1" / "p1-seg.nii.gz").unlink()
        with pytest.raises(UsageError, match="no complete exam with a segmentation"):
            transplant_lesions(TransplantOptions(tmp_path / "one", tmp_path / "one", tmp_path / "o"))
