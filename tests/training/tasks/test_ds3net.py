"""From paired and unpaired exams to a model that makes the sequence, as a user does it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from app.cli import main
from app.core.errors import ExitCode, UsageError, WeightsError
from app.data.phantom import make_phantom, write_phantom
from app.inference.synthesizer import Synthesizer
from app.networks.architectures import DS3NET_WIDTHS, UNetConfig
from app.networks.unet import UNetGenerator
from app.preprocessing.slices import Canvas
from app.registry.checkpoints import load_generator
from app.registry.manifest import read_manifest
from app.training.checkpoint import LAST, load_state
from app.training.config import load_recipe
from app.training.data.unpaired import PairedSource
from app.training.distributed import Processes
from app.training.tasks.base import TrainingContext
from app.training.tasks.ds3net import Ds3NetTask
from app.training.tasks.synthesis import SynthesisTask
from tests.conftest import load
from tests.networks.small_models import record_of, save_generator
from tests.training.conftest import RANGE
from tests.training.ds3net import SMALL_DS3NET


def _options(*changes: str) -> list[str]:
    return [word for change in (*SMALL_DS3NET, "schedule.batch_size=2", *changes) for word in ("--set", change)]


def _train(data, run, *more: str, steps: int = 2) -> int:
    return main(["train", "ds3net_compact", "--data", str(data), "--run", str(run), "--device", "cpu",
                 *_options(f"schedule.steps={steps}", "schedule.budget_minutes=0"), *more])  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """A generator whose step takes a moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DS3NET_WIDTHS, "compact", 4)
        yield


@pytest.fixture(scope="module")
def run(training_data, unpaired_data, tmp_path_factory):
    """A run of one step of each stage."""
    folder = tmp_path_factory.mktemp("ds3net") / "run"
    assert _train(training_data, folder, "--unpaired", str(unpaired_data)) == ExitCode.OK
    return folder


@pytest.fixture(scope="module")
def weights(run, training_data, weights_dir, tmp_path_factory):
    """The weights of all tests, and the run's student as `student`; its graph is tested elsewhere."""
    folder = shutil.copytree(weights_dir, tmp_path_factory.mktemp("w") / "weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.registry.onnx_export.to_onnx", lambda *_: b"graph")
        code = main(["export", str(run), "--data", str(training_data), "--weights", str(folder), "--model", "student",
                     "--force", "--device", "cpu"])  # fmt: skip
    assert code == ExitCode.OK
    return folder


class TestRun:
    def test_both_stages_were_run(self, run):
        state = load_state(run / LAST)
        assert state.step == 2
        assert set(state.networks) == {f"{role}{part}" for role in ("student", "teacher")
                                       for part in ("", "_heads", "_discriminator")}  # fmt: skip
        assert state.subjects == ["s0", "s1", "s2"]
        assert state.unpaired == ["u5", "u6", "u8"]
        columns = (run / "log.csv").read_text()
        assert "teacher_pixel" in columns
        assert "student_image" in columns
        # The teacher and its student parted in the second stage.
        pairs = zip(state.networks["student"].values(), state.networks["teacher"].values(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)

    def test_resuming_gives_what_an_unbroken_run_gives(self, run, training_data, unpaired_data, tmp_path, monkeypatch):
        monkeypatch.setattr("app.training.trainer.SignalGuard.waiting", property(_after(1)))
        unpaired = ["--unpaired", str(unpaired_data)]
        assert _train(training_data, tmp_path / "run", *unpaired) == 128 + 15
        assert load_state(tmp_path / "run" / LAST).step == 1
        monkeypatch.undo()
        assert _train(training_data, tmp_path / "run", *unpaired, "--resume") == ExitCode.OK
        _assert_equal(load_state(run / LAST), load_state(tmp_path / "run" / LAST))

    def test_resuming_inside_the_second_stage(self, training_data, unpaired_data, tmp_path, monkeypatch):
        unpaired = ["--unpaired", str(unpaired_data)]
        assert _train(training_data, tmp_path / "whole", *unpaired, steps=4) == ExitCode.OK
        monkeypatch.setattr("app.training.trainer.SignalGuard.waiting", property(_after(3)))
        assert _train(training_data, tmp_path / "run", *unpaired, steps=4) == 128 + 15
        assert load_state(tmp_path / "run" / LAST).step == 3
        monkeypatch.undo()
        assert _train(training_data, tmp_path / "run", *unpaired, "--resume", steps=4) == ExitCode.OK
        _assert_equal(load_state(tmp_path / "whole" / LAST), load_state(tmp_path / "run" / LAST))

    def test_a_run_goes_on_with_its_unpaired_exams_alone(self, run, training_data, capsys):
        assert _train(training_data, run, "--resume", steps=2) == ExitCode.USAGE
        assert "other exams of --unpaired" in capsys.readouterr().err

    def test_without_unpaired_exams_the_student_sees_the_paired_ones(self, paired_subjects, tmp_path, caplog):
        recipe = load_recipe("ds3net_compact", SMALL_DS3NET)
        context = TrainingContext(recipe, paired_subjects, tmp_path, Processes(0, 1, torch.device("cpu")))
        source = Ds3NetTask.open(context).new_source(context)
        assert isinstance(source, PairedSource)
        assert "--unpaired" in caplog.text
        _, unpaired = source.both(0)
        assert (unpaired.batch.images[:, 0] > -1).any()

    def test_another_task_takes_none(self, training_data, unpaired_data, tmp_path, capsys):
        code = main(["train", "smoke", "--data", str(training_data), "--run", str(tmp_path / "r"),
                     "--unpaired", str(unpaired_data)])  # fmt: skip
        assert code == ExitCode.USAGE
        assert "--unpaired is for recipes" in capsys.readouterr().err


def _after(steps: int):
    """A signal that comes after so many steps."""
    calls = iter([0] * steps)
    return lambda _: next(calls, 15)


def _assert_equal(one, two) -> None:
    """Networks, averages and the optimizers' moments are the same bits."""
    assert set(one.networks) == set(two.networks)
    for name, values in {**one.networks, "average": one.average}.items():
        other = two.average if name == "average" else two.networks[name]
        assert all(torch.equal(value, other[key]) for key, value in values.items()), name
    assert _plain(one.optimizers) == _plain(two.optimizers)


def _plain(value):
    """Optimizer states without tensors, to be compared."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


class TestModel:
    def test_the_student_makes_the_sequence(self, weights, run, tmp_path):
        entry = read_manifest(weights).entry("student")
        assert (entry.spec.targets, entry.spec.architecture.network) == (("t1c",), "ds3net")
        state, network = load_state(run / LAST), load_generator(entry)
        for name, value in network.state_dict().items():
            assert torch.equal(value, state.average[name].half().float())
        write_phantom(make_phantom((40, 44, 36), 9), tmp_path / "in", "p9", leave_out=("t1c",))
        code = main(["synthesize", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--model",
                     "student", "--weights", str(weights), "--backend", "torch", "--on-error", "stop",
                     "--device", "cpu"])  # fmt: skip
        assert code == ExitCode.OK
        (made,) = (tmp_path / "out").rglob("*t1c.nii.gz")
        image = load(made)
        assert "student" in str(image.header["descrip"])
        assert np.asarray(image.dataobj).std() > 0

    def test_whoever_taught_is_recorded_and_not_scored_on(self, weights, run, training_data, unpaired_data, capsys):
        assert record_of(weights, "student").subjects == ("s0", "s1", "s2", "u5", "u6", "u8")
        code = main(["export", str(run), "--data", str(training_data), "--weights", str(weights), "--model", "other",
                     "--score-on", str(unpaired_data)])  # fmt: skip
        assert code == ExitCode.USAGE
        assert "u8 of" in capsys.readouterr().err

    def test_an_exam_that_lacks_a_source_is_left_to_others(self, weights, tmp_path, capsys):
        write_phantom(make_phantom((40, 44, 36), 9), tmp_path / "in", "p9", leave_out=("t1c", "t2w"))
        code = main(["synthesize", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--model",
                     "student", "--weights", str(weights), "--backend", "torch", "--on-error", "stop",
                     "--complete-all", "--device", "cpu"])  # fmt: skip
        assert code != ExitCode.OK
        assert "the exam lacks t2w" in capsys.readouterr().err

    def test_it_is_a_specialist_of_a_model_that_sees_the_same_scale(
        self, weights, run, training_data, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.setattr("app.registry.onnx_export.to_onnx", lambda *_: b"graph")
        folder, host = shutil.copytree(weights, tmp_path / "w"), UNetConfig(widths=(8, 16))
        brightness = read_manifest(folder).entry("student").path_of("intensity").read_bytes()
        save_generator(folder, "host", host, UNetGenerator(host).state_dict(), RANGE,
                       Canvas({"axial": (48, 48)}), ("axial",), intensity=brightness)  # fmt: skip
        export = ["export", str(run), "--data", str(training_data), "--weights", str(folder), "--model", "expert",
                  "--force", "--device", "cpu", "--specialist-of"]  # fmt: skip
        assert main([*export, "tiny"]) == ExitCode.USAGE
        assert "cannot be a specialist of 'tiny'" in capsys.readouterr().err
        assert main([*export, "host"]) == ExitCode.OK
        model = Synthesizer("host", weights=folder, device="cpu", backend="torch").model
        assert model.model_for("t1c").identity.name == "expert"
        assert model.model_for("t2f").identity.name == "host"

    def test_it_cannot_be_the_default(self, run, training_data, weights, capsys):
        code = main(["export", str(run), "--data", str(training_data), "--weights", str(weights), "--model", "x",
                     "--force", "--make-default"])  # fmt: skip
        assert code == ExitCode.USAGE
        assert "cannot be the default" in capsys.readouterr().err

    def test_a_start_from_a_student_is_teacher_and_student(self, weights):
        task = Ds3NetTask(load_recipe("ds3net_compact", SMALL_DS3NET), torch.device("cpu"))
        entry = read_manifest(weights).entry("student")
        task.load_initial_weights(entry)
        network = load_generator(entry)
        for learner in (task.teacher, task.student):
            for own, theirs in zip(learner.generator.parameters(), network.parameters(), strict=True):
                assert torch.equal(own, theirs)
        other = Ds3NetTask(load_recipe("ds3net_compact", [*SMALL_DS3NET, "data.targets=['t2f']"]), task.device)
        with pytest.raises(UsageError, match="makes t1c; start from one that makes t2f"):
            other.load_initial_weights(entry)

    def test_other_kinds_are_no_start(self, weights):
        manifest = read_manifest(weights)
        with pytest.raises(WeightsError, match="is no DS3-Net"):
            Ds3NetTask.read_weights(manifest.entry("tiny"))
        with pytest.raises(WeightsError, match="is a DS3-Net"):
            SynthesisTask.read_weights(manifest.entry("student"))

    def test_it_opens_from_python(self, weights):
        model = Synthesizer("student", weights=weights, device="cpu", backend="torch").model
        assert model.targets == ("t1c",)


def test_validation_scores_the_target_alone(training_data, paired_subjects):
    from app.data.discovery import scan
    from app.data.segmentations import find_segmentations

    task = Ds3NetTask(load_recipe("ds3net_compact", SMALL_DS3NET), torch.device("cpu"))
    task.subjects = paired_subjects
    cases = scan(training_data).cases[:1]
    scores = task.validate(cases, find_segmentations(training_data, cases))
    assert 0 <= scores["ssim_brain"] <= 1
    first = task.selection_score(scores)
    task.progress = 0.9
    assert task.selection_score(scores) > first + 1


def test_pictures_show_target_teacher_and_student(paired_subjects):
    task = Ds3NetTask(load_recipe("ds3net_compact", SMALL_DS3NET), torch.device("cpu"))
    source = PairedSource(paired_subjects, paired_subjects, task.recipe.data, 2)
    (row,) = task.pictures(source.sampler)
    assert [image.shape for image in row] == [(32, 48)] * 3
