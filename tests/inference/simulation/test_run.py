from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from app.core.constants import MODALITIES
from app.core.errors import OutputError, UsageError
from app.data.discovery import scan
from app.data.loading import load_complete
from app.data.nifti_reader import load_volume
from app.data.phantom import make_phantom, write_phantom
from app.inference.simulation import exam_files as module
from app.inference.simulation.own_tissue import tissue_of_exam
from app.inference.simulation.run import SimulationOptions, simulate
from app.networks.architectures import CgSamrConfig
from app.registry.identity import Identity
from tests.inference.simulation.helpers import SHAPE, small_atlas, small_simulator

MODEL = Identity("tiny", "0" * 64)


@pytest.fixture(scope="module")
def lesions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lesions")
    for seed in (1, 2):
        write_phantom(make_phantom(SHAPE, seed), folder, f"p{seed}")
    return folder


@pytest.fixture(scope="module")
def made(lesions, tmp_path_factory):
    """Three exams with all that may be done to lesions, their records and their folder."""
    output, sure = tmp_path_factory.mktemp("out") / "exams", tmp_path_factory.mktemp("sure")
    options = SimulationOptions(
        lesions, output, count=3, scale=(0.5, 2.0), mirror=True, move=True, seed=4, confidence=sure
    )
    return simulate(options, small_simulator(), MODEL), output, sure


class TestExams:
    def test_they_are_read_as_complete_exams(self, made):
        cases = scan(made[1]).cases
        assert [c.subject for c in cases] == [f"synthetic-4-000{n}" for n in range(3)]
        read = dict(load_complete(cases))
        assert len(read) == 3
        assert all(v.grid.lps_shape == SHAPE for volumes in read.values() for v in volumes.values())

    def test_they_say_that_they_are_synthetic(self, made):
        for path in made[1].rglob("*.nii.gz"):
            assert str(nib.load(path).header["descrip"].item().decode()).startswith("SYNTHETIC exam, tetrad")
        record = json.loads((made[1] / "simulated.json").read_text())
        assert record["synthetic"] is True
        assert record["model"] == "tiny"
        assert len(record["exams"]) == 3

    def test_the_lesion_lies_in_the_brain(self, made):
        for record in made[0]:
            folder = made[1] / record.name
            labels = load_volume(folder / f"{record.name}-seg.nii.gz").data
            brain = load_volume(folder / f"{record.name}-t1c.nii.gz").data > 0
            assert labels.any()
            assert (labels[~brain] == 0).all()
            assert np.array_equal(brain, small_atlas().brain_mask)

    def test_the_record_tells_what_was_done(self, made):
        assert {r.lesion for r in made[0]} == {"p1", "p2"}
        assert all(0.5 <= r.scale <= 2 for r in made[0])
        assert any(any(r.shift) for r in made[0])
        assert all(len(r.stripes) == 4 for r in made[0])

    def test_lesions_may_stand_out_less(self, lesions, tmp_path):
        def spread(contrast):
            options = SimulationOptions(lesions, tmp_path / f"{contrast}", count=1, contrast=(contrast, contrast))
            (record,) = simulate(options, small_simulator(), MODEL)
            assert record.contrast == dict.fromkeys(MODALITIES, contrast)
            (volumes,) = dict(load_complete(scan(options.output).cases)).values()
            labels = load_volume(options.output / record.name / f"{record.name}-seg.nii.gz").data
            image = volumes["t1c"].data
            healthy = np.median(image[(image > 0) & (labels == 0)])
            return np.abs(image[labels > 0] - healthy).mean()

        assert spread(0.2) < 0.6 * spread(1.0)

    def test_each_sequence_has_a_contrast_of_its_own(self, lesions, tmp_path):
        options = SimulationOptions(lesions, tmp_path / "out", count=1, contrast=(0.2, 1.3))
        (record,) = simulate(options, small_simulator(), MODEL)
        assert len(set(record.contrast.values())) == 4
        assert all(0.2 <= factor <= 1.3 for factor in record.contrast.values())

    def test_confidence_lies_beside(self, made):
        maps = sorted(made[2].iterdir())
        assert len(maps) == 12
        values = nib.load(maps[0]).get_fdata()
        assert 0 <= values.min() <= values.max() <= 1

    def test_the_same_seed_makes_the_same_bytes(self, made, lesions, tmp_path):
        options = SimulationOptions(lesions, tmp_path / "o", count=1, scale=(0.5, 2.0), mirror=True, move=True, seed=4)
        simulate(options, small_simulator(), MODEL)
        for path in (tmp_path / "o").rglob("*.nii.gz"):
            assert path.read_bytes() == (made[1] / path.relative_to(tmp_path / "o")).read_bytes()


class TestBrains:
    def test_each_lesion_in_its_own_brain(self, lesions, tmp_path):
        records = simulate(SimulationOptions(lesions, tmp_path / "o", lesions), small_simulator(), MODEL)
        assert [r.lesion == r.brain for r in records] == [True, True]

    def test_exchanged(self, lesions, tmp_path):
        records = simulate(SimulationOptions(lesions, tmp_path / "o", lesions, exchange=True), small_simulator(), MODEL)
        assert {(r.lesion, r.brain) for r in records} == {("p1", "p2"), ("p2", "p1")}
        mask = load_volume(tmp_path / "o" / records[0].name / f"{records[0].name}-t2w.nii.gz").data > 0
        assert np.array_equal(mask, load_volume(lesions / records[0].brain / f"{records[0].brain}-t2w.nii.gz").data > 0)

    def test_a_network_that_sees_tissue_gets_that_of_the_brain_and_not_of_its_lesion(self, lesions, tmp_path, caplog):
        simulator = small_simulator(CgSamrConfig(width=4, prior="subject"))
        given = []
        real = simulator.run
        simulator.run = lambda brain, labels, own: (given.append(own), real(brain, labels, own))[1]
        simulate(SimulationOptions(lesions, tmp_path / "o", lesions), simulator, MODEL)
        assert "average brain" not in caplog.text
        simulate(SimulationOptions(lesions, tmp_path / "p"), simulator, MODEL)
        assert "average brain" in caplog.text
        assert [own is not None for own in given] == [True] * 2 + [False] * 2
        exam = {m: load_volume(lesions / "p1" / f"p1-{m}.nii.gz").data for m in MODALITIES}
        labels = np.rint(load_volume(lesions / "p1" / "p1-seg.nii.gz").data).astype(np.uint8)
        expected = tissue_of_exam(exam, exam["t1n"] > 0, labels)
        assert any(own.shape == expected.shape and np.array_equal(own, expected) for own in given[:2])

    def test_no_brain_of_that_name(self, lesions, tmp_path):
        write_phantom(make_phantom(SHAPE, 5), tmp_path / "b", "other")
        with pytest.raises(UsageError, match="finds no brain of its own name"):
            simulate(SimulationOptions(lesions, tmp_path / "o", tmp_path / "b"), small_simulator(), MODEL)


class TestRefusals:
    def _refused(self, options, message):
        before = sorted(options.output.rglob("*")) if options.output.exists() else []
        with pytest.raises(UsageError, match=message):
            simulate(options, small_simulator(), MODEL)
        assert (sorted(options.output.rglob("*")) if options.output.exists() else []) == before

    def test_output_inside_the_input(self, lesions):
        self._refused(SimulationOptions(lesions, lesions / "new"), "lie in each other")
        self._refused(SimulationOptions(lesions, lesions), "lie in each other")

    def test_input_inside_the_output(self, lesions):
        self._refused(SimulationOptions(lesions, lesions.parent), "lie in each other")

    def test_a_mask_outside_the_brain(self, tmp_path):
        labels = np.zeros(SHAPE, np.uint8)
        labels[:2, :2, :2] = 1
        nib.save(nib.Nifti1Image(labels, small_atlas().frame.matrix), tmp_path / "far-seg.nii.gz")
        options = SimulationOptions(tmp_path / "far-seg.nii.gz", tmp_path / "o")
        self._refused(options, "far-seg.nii.gz lies outside the brain of atlas")

    def test_every_mask_is_looked_at_first(self, lesions, tmp_path):
        for seed in (1, 2):
            write_phantom(make_phantom(SHAPE, seed), tmp_path / "in", f"p{seed}")
        empty = tmp_path / "in" / "p2" / "p2-seg.nii.gz"
        nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), small_atlas().frame.matrix), empty)
        self._refused(SimulationOptions(tmp_path / "in", tmp_path / "o"), "p2-seg.nii.gz is empty")

    def test_exams_that_are_there(self, made, lesions):
        self._refused(SimulationOptions(lesions, made[1], seed=4), "holds synthetic-4-0000 already")

    def test_maps_among_exams(self, lesions, tmp_path):
        self._refused(SimulationOptions(lesions, tmp_path, confidence=tmp_path / "c"), "taken for exams")

    def test_exchange_without_brains(self, lesions, tmp_path):
        self._refused(SimulationOptions(lesions, tmp_path / "o", exchange=True), "needs --brains")


def test_nothing_half_written(lesions, tmp_path, monkeypatch):
    def full(contents):
        next(iter(contents)).write_bytes(b"half")
        raise OutputError("full")

    monkeypatch.setattr(module, "save_together", full)
    with pytest.raises(OutputError):
        simulate(SimulationOptions(lesions, tmp_path / "o"), small_simulator(), MODEL)
    assert list((tmp_path / "o").iterdir()) == []
