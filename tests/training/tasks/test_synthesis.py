from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from app.cli import main
from app.core.constants import MODALITIES, VIEWS
from app.core.errors import UsageError, WeightsError
from app.data.nifti_reader import load_volume
from app.inference.pipeline import predict, prepare
from app.inference.synthesizer import Synthesizer
from app.networks import new_generator
from app.networks.unet import Segmenter2d, UNetGenerator
from app.preprocessing.normalization import BRASYN25_INTENSITIES, Intensity, Normalization
from app.preprocessing.target_intensity import KAIST24_PRIOR
from app.registry.checkpoints import load_generator
from app.registry.manifest import read_manifest
from app.training import losses as L
from app.training import trainer as loop
from app.training.checkpoint import LAST, load_state
from app.training.config import load_recipe
from app.training.data.cache import NORMALIZATION, build_cache
from app.training.data.sections import SliceData
from app.training.data.slices import Sampler, Source
from app.training.export import export_run
from app.training.fits.intensity import encode, fit_intensity, medians_of
from app.training.tasks.synthesis import SynthesisTask
from app.training.tasks.synthesis_recipe import generator_config
from app.training.trainer import TrainingPaths, train
from tests.networks.small_models import record_of, save_generator, save_segmenter2d

SMALL = ["data.axial=[48,48]", "data.sagittal=[48,48]", "data.coronal=[48,48]", "data.min_brain_pixels=200",
         "schedule.validate_every=0", "schedule.batch_size=2", "schedule.targets_per_batch=1",
         "schedule.budget_minutes=0", "schedule.steps=4"]  # fmt: skip
#: As the default model but for its size: a step must be quick here.
UNET = ["network.kind='unet'", "losses.feature=0", "losses.cycle=0", "losses.adversarial=0", "losses.classification=0",
        "losses.tversky=0"]  # fmt: skip
HYBRID = [c for c in UNET if "kind" not in c]
HEADS = ["bounded", "likelihood"]
RANGE = Normalization("range", background=-1.0)


def small(*changes: str, recipe: str = "confidence"):
    return load_recipe(recipe, [*SMALL, *changes])


@pytest.fixture(scope="module")
def weights(training_data, training_cache, tmp_path_factory):
    """Untrained generators without a head: `unet` and `hybrid`."""
    folder = tmp_path_factory.mktemp("weights")
    intensity = encode(fit_intensity([s.intensities for s in build_cache(training_data, training_cache)]))
    for name, changes in (("unet", UNET), ("hybrid", HYBRID)):
        recipe = small(*changes, recipe="smoke")
        torch.manual_seed(5)
        network = new_generator(generator_config(recipe))
        # As published weights are: rounded to half precision.
        state = {k: v.half() for k, v in network.state_dict().items()}
        save_generator(folder, name, network.config, state, NORMALIZATION, recipe.data.canvas, VIEWS,
                       intensity=intensity)  # fmt: skip
    return folder


@pytest.fixture
def no_onnx(monkeypatch):
    """Exports whose ONNX nobody looks at: it takes most of their time."""
    monkeypatch.setattr("app.registry.onnx_export.to_onnx", lambda *_: b"graph")


@pytest.fixture
def paths(training_data, training_cache, tmp_path):
    return TrainingPaths(training_data, tmp_path / "run", training_cache)


def source_of(data, cache, recipe):
    sampler = Sampler(build_cache(data, cache), recipe.data, -1.0)
    return Source(sampler, recipe.schedule.batch_size, recipe.augmentation.shift)


def entry_of(weights, name="unet"):
    return read_manifest(weights).entry(name)


class TestHeadAlone:
    @pytest.mark.parametrize("kind", HEADS)
    @pytest.mark.parametrize("name,changes", [("unet", UNET), ("hybrid", HYBRID)])
    def test_nothing_but_the_head_moves(self, weights, paths, name, changes, kind):
        recipe = small(*changes, f"network.confidence='{kind}'", "network.frozen=true", recipe="smoke")
        state = train(recipe, paths, start=entry_of(weights, name)).state
        before = {k: v.float() for k, v in torch_state(weights, name).items()}
        for held in (state.average, state.networks["generator"]):
            assert {k for k in held if k not in before} == {
                f"confidence.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")
            }
            assert all(torch.equal(held[k], v) for k, v in before.items())
        fresh = SynthesisTask(recipe, torch.device("cpu")).generator.confidence.state_dict()
        assert not torch.equal(state.average["confidence.2.bias"], fresh["2.bias"])

    def test_it_learns_one_batch_by_heart(self, training_data, training_cache):
        recipe = small("network.confidence='likelihood'")
        torch.manual_seed(0)
        task = SynthesisTask(recipe, torch.device("cpu"))
        source = source_of(training_data, training_cache, recipe)
        head = [p for p in task.generator.parameters() if p.requires_grad]
        assert sum(p.numel() for p in head) < 5000
        optimizer = torch.optim.AdamW(head, lr=1e-2)
        found = [task.step(source, 0, 1, lambda _: bool(optimizer.step()) or True) for _ in range(40)]
        assert found[-1]["confidence"] < found[0]["confidence"] - 0.02
        assert float(found[-1]["l1"]) == float(found[0]["l1"])

    @pytest.mark.usefixtures("no_onnx")
    def test_a_head_of_another_kind_makes_room(self, weights, paths, tmp_path):
        likelihood, bounded = (
            small(*UNET, f"network.confidence='{kind}'", "network.frozen=true", recipe="smoke")
            for kind in ("likelihood", "bounded")
        )
        train(likelihood, paths, start=entry_of(weights))
        entry = export_run(paths.run, weights, "sure", data=paths.data, cache=paths.cache, force=True)
        state = train(bounded, replace(paths, run=tmp_path / "other"), start=entry).state
        before = {k: v.float() for k, v in torch_state(weights, "unet").items()}
        assert all(torch.equal(state.average[k], v) for k, v in before.items())

    def test_it_needs_a_network_to_stand_on(self, paths):
        with pytest.raises(UsageError, match="name it with --start"):
            train(small(), paths)

    @pytest.mark.usefixtures("no_onnx")
    def test_what_is_exported_makes_the_same_images(self, weights, paths, subject):
        train(small(), paths, start=entry_of(weights))
        as_before = {"contrast": 0.0, "flip_average": False}
        entry = export_run(paths.run, weights, "sure", data=paths.data, cache=paths.cache, force=True, **as_before)
        assert entry.spec.architecture.confidence == "likelihood"
        assert record_of(weights, "sure").started_from == entry_of(weights, "unet").sha256
        volumes = {m: load_volume(f) for m, f in subject.items()}
        made = []
        for name in ("unet", "sure"):
            model = Synthesizer(name, weights=weights, device="cpu", precision="fp32").model
            made.append(predict(prepare(volumes, model), "t2f", model).volume)
        np.testing.assert_array_equal(*made)
        model = Synthesizer("sure", weights=weights, device="cpu", with_error=True, fusion="confidence").model
        assert predict(prepare(volumes, model), "t2f", model).error.min() > 0

    def test_a_resumed_run_equals_an_unbroken_one(self, weights, paths, tmp_path, monkeypatch):
        recipe = small("network.confidence='bounded'")
        whole = train(recipe, paths, start=entry_of(weights)).state
        broken = replace(paths, run=tmp_path / "broken")
        original = loop._Run._step

        def stop(self, progress):
            losses = original(self, progress)
            if self.state.step == 2:
                signal.raise_signal(signal.SIGTERM)
            return losses

        monkeypatch.setattr(loop._Run, "_step", stop)
        assert train(recipe, broken, start=entry_of(weights)).state.step == 2
        monkeypatch.setattr(loop._Run, "_step", original)
        again = train(recipe, broken, resume=True).state
        assert again.task_state == whole.task_state
        assert again.task_state["mean_confidence"] > 0
        for name, value in whole.average.items():
            assert torch.equal(again.average[name], value)


class TestNeighbours:
    CHANGES = (*UNET, "network.neighbours=1")

    def test_it_begins_as_the_network_without_them(self, weights):
        task = SynthesisTask(small(*self.CHANGES, recipe="smoke"), torch.device("cpu"))
        task.load_initial_weights(entry_of(weights))
        plain = load_generator(entry_of(weights)).eval()
        images, present = torch.randn(2, 12, 48, 48), torch.tensor([[1.0, 1, 0, 1]] * 2)
        codes = torch.tensor([2, 2]), torch.tensor([0, 1])
        with torch.no_grad():
            made = task.average(images, present, *codes)
            expected = plain(images[:, :4], present, *codes)
        torch.testing.assert_close(made, expected)

    def test_from_recipe_to_image(self, weights, paths, subject):
        train(small(*self.CHANGES, "network.slices=3", recipe="smoke"), paths, start=entry_of(weights))
        entry = export_run(paths.run, weights, "beside", data=paths.data, cache=paths.cache, force=True)
        assert (entry.spec.architecture.neighbours, entry.spec.architecture.slices) == (1, 3)
        volumes, made = {m: load_volume(f) for m, f in subject.items()}, []
        for backend in ("torch", "onnx"):
            model = Synthesizer("beside", weights=weights, device="cpu", precision="fp32", backend=backend).model
            made.append(predict(prepare(volumes, model), "t2f", model).volume)
        np.testing.assert_allclose(made[1], made[0], atol=1e-3 * made[0].std())

    def test_each_slice_begins_as_the_middle_one(self, weights):
        changes = (*self.CHANGES, "network.slices=3", "network.confidence='likelihood'")
        task = SynthesisTask(small(*changes, recipe="smoke"), torch.device("cpu"))
        task.load_initial_weights(entry_of(weights))
        images, present = torch.randn(2, 12, 48, 48), torch.ones(2, 4)
        with torch.no_grad():
            features = task.average.features(images, present, torch.tensor([2, 2]), torch.tensor([0, 1]))
            made = task.average.image(features)
        assert made.shape == task.average.error(features).shape == (2, 3, 48, 48)
        assert torch.equal(made[:, 0], made[:, 1])
        assert torch.equal(made[:, 0], made[:, 2])

    @pytest.mark.parametrize("pieces", [1, 2])
    def test_all_slices_of_a_pass_teach(self, training_data, training_cache, pieces):
        recipe = small(*self.CHANGES, "network.slices=3", "network.confidence='likelihood'", recipe="smoke")
        task = SynthesisTask(recipe, torch.device("cpu"))
        sampler = Sampler(build_cache(training_data, training_cache), recipe.data, -1.0, neighbours=1)
        losses = task.step(Source(sampler, 2, 4), 0, pieces, lambda _: True)
        assert {"l1", "ssim", "confidence"} <= set(losses)
        gradient = task.generator.network.head.weight.grad.abs().sum(dim=(1, 2, 3))
        assert (gradient > 0).all()
        with torch.no_grad():
            batch, seen, _ = task.prepare(Source(sampler, 2, 4), 0)
        assert len(batch) == 3 * len(seen)
        assert task.pictures(sampler)[0][1].shape == (48, 48)

    @pytest.mark.parametrize("changes,said", [
        (["network.slices=3", "network.neighbours=0"], "no more than network.neighbours lets it see"),
        (["network.slices=2"], "must be odd"),
        (["network.neighbours=5"], "must be 0 to 4"),
        (["data.availability='sample'"], "data.availability = 'batch'"),
        (["losses.cycle=1"], "losses.cycle = 0"),
    ])  # fmt: skip
    def test_what_does_not_go_together(self, changes, said):
        with pytest.raises(UsageError, match=said):
            small(*self.CHANGES, *changes, recipe="smoke")

    def test_exams_without_a_sequence_are_refused(self):
        assert SynthesisTask.withheld(small(*self.CHANGES, "data.targets=['t1c']", recipe="smoke")) is None


class TestBothTogether:
    @pytest.mark.parametrize("kind", HEADS)
    @pytest.mark.parametrize("changes", [UNET, HYBRID], ids=["unet", "hybrid"])
    def test_everything_learns(self, training_data, training_cache, kind, changes):
        recipe = small(*changes, f"network.confidence='{kind}'", recipe="smoke")
        task = SynthesisTask(recipe, torch.device("cpu"))
        losses = task.step(source_of(training_data, training_cache, recipe), 0, 1, lambda _: True)
        assert {"l1", "ssim", "confidence", "mean_confidence"} <= set(losses)
        moved = {n: p.grad is not None and bool(p.grad.abs().sum() > 0) for n, p in task.generator.named_parameters()}
        assert all(v for n, v in moved.items() if n.startswith("confidence"))
        assert np.mean(list(moved.values())) > 0.6

    @pytest.mark.usefixtures("no_onnx")
    def test_a_start_may_lack_the_head(self, weights, paths, tmp_path):
        recipe = small(*UNET, "network.confidence='bounded'", recipe="smoke")
        state = train(recipe, paths, start=entry_of(weights)).state
        assert state.started_from.name == "unet"
        entry = export_run(paths.run, weights, "bound", data=paths.data, cache=paths.cache, force=True)
        other = replace(paths, run=tmp_path / "other")
        with pytest.raises(UsageError, match="of the kind 'bounded'"):
            train(small(*UNET, "network.confidence='likelihood'", recipe="smoke"), other, start=entry)
        with pytest.raises(UsageError, match="another architecture"):
            train(recipe, other, start=entry_of(weights, "hybrid"))
        assert train(recipe, other, start=entry).state.step == 4

    def test_lambda_falls_when_the_head_has_grown_sure_and_stays_so(
        self, training_data, training_cache, weights, paths
    ):
        recipe = small("network.confidence='bounded'")
        task = SynthesisTask(recipe, torch.device("cpu"))
        assert task.average.confidence.scale == task.task_state["lambda"] == 0.1
        for _ in range(200):
            task._grow_sure(0.69)
        assert task.task_state["lambda"] == 0.1
        for _ in range(200):
            task._grow_sure(0.75)
        assert task.generator.confidence.scale == task.average.confidence.scale == task.task_state["lambda"] == 0.03
        task._grow_sure(0.1)
        assert task.task_state["lambda"] == 0.03

    @pytest.mark.usefixtures("no_onnx")
    def test_the_last_lambda_is_in_the_manifest(self, weights, paths, monkeypatch):
        monkeypatch.setattr(L, "SURE", 0.0)
        train(small("network.confidence='bounded'"), paths, start=entry_of(weights))
        assert load_state(paths.run / LAST).task_state["lambda"] == 0.03
        entry = export_run(paths.run, weights, "low", data=paths.data, cache=paths.cache, force=True)
        assert entry.spec.architecture.confidence_scale == 0.03

    def test_an_update_that_is_skipped_is_not_remembered(self, training_data, training_cache):
        recipe = small("network.confidence='bounded'")
        task = SynthesisTask(recipe, torch.device("cpu"))
        task.step(source_of(training_data, training_cache, recipe), 0, 1, lambda _: False)
        assert task.task_state["mean_confidence"] == 0.0


@pytest.fixture(scope="module")
def range_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("range-cache")


class TestIntensityEncoding:
    """A network that gets the target's median: the true one while it learns, a prior's in use."""

    CODE = ("normalization.scheme='range'", "network.intensity_encoding=true", "output.contrast=0")

    @pytest.fixture
    def paths(self, training_data, range_cache, tmp_path):
        return TrainingPaths(training_data, tmp_path / "run", range_cache)

    def test_from_recipe_to_image(self, weights, paths, subject):
        recipe = small(*UNET, *self.CODE, recipe="smoke")
        train(recipe, paths)
        entry = export_run(paths.run, weights, "told", data=paths.data, cache=paths.cache, force=True)
        assert entry.spec.architecture.intensity_code is True
        assert entry.spec.normalization.scheme == "range"
        volumes = {m: load_volume(f) for m, f in subject.items()}
        made = {}
        for backend in ("torch", "onnx"):
            model = Synthesizer("told", weights=weights, device="cpu", precision="fp32", backend=backend).model
            made[backend] = predict(prepare(volumes, model), "t2f", model).volume
        assert np.abs(made["torch"] - made["onnx"]).mean() < 1e-3 * made["torch"].std()
        mean = entry.spec.intensity_prior.means["t2f"]
        same, other, sample = (
            Synthesizer("told", weights=weights, device="cpu", precision="fp32", intensity=choice).model
            for choice in (mean, 0.9, "sample")
        )
        images = [predict(prepare(volumes, m), "t2f", m).volume for m in (same, other, sample, sample)]
        np.testing.assert_allclose(images[0], made["torch"], atol=1e-6)
        assert np.abs(images[1] - made["torch"]).max() > 1e-3
        np.testing.assert_array_equal(images[2], images[3])

    def test_it_learns_with_the_true_median_of_its_target(self, paths, monkeypatch):
        seen = []
        original = UNetGenerator.features
        monkeypatch.setattr(
            UNetGenerator, "features",
            lambda self, *a, **k: seen.append((int(a[2][0]), a[4].tolist())) or original(self, *a, **k),
        )  # fmt: skip
        train(small(*UNET, *self.CODE, "schedule.validate_every=0", recipe="smoke"), paths)
        known = [medians_of(s) for s in build_cache(paths.data, paths.cache, RANGE)]
        for target, medians in seen:
            truths = [row[MODALITIES[target]] for row in known]
            assert all(min(abs(median - truth) for truth in truths) < 1e-6 for median in medians)

    @pytest.mark.usefixtures("no_onnx")
    def test_published_priors_may_take_their_place(self, weights, paths):
        recipe = small(*UNET, *self.CODE, "network.intensity_prior='published'", recipe="smoke")
        train(recipe, paths)
        entry = export_run(paths.run, weights, "told", data=paths.data, cache=paths.cache, force=True)
        assert entry.spec.intensity_prior == KAIST24_PRIOR

    def test_its_spread_is_not_brought_to_that_of_z_scores(self):
        with pytest.raises(UsageError, match=r"output\.contrast is for normalization\.scheme = 'volume'"):
            small("normalization.scheme='range'", recipe="smoke")

    def test_it_needs_slices_of_that_range(self):
        with pytest.raises(UsageError, match=r"needs normalization\.scheme = 'range'"):
            small("network.intensity_encoding=true", recipe="smoke")

    @pytest.mark.usefixtures("no_onnx")
    def test_a_manifest_without_the_prior(self, weights, paths, tmp_path):
        train(small(*UNET, *self.CODE, recipe="smoke"), paths)
        weights = shutil.copytree(weights, tmp_path / "w")
        export_run(paths.run, weights, "told", data=paths.data, cache=paths.cache, force=True)
        path = weights / "manifest.json"
        form = json.loads(path.read_text())
        del form["models"]["told"]["intensity_prior"]
        path.write_text(json.dumps(form))
        with pytest.raises(WeightsError, match="needs intensity_prior"):
            Synthesizer("told", weights=weights, device="cpu")


class TestDataset:
    """Constants of a training set, from the recipe to the image."""

    CONSTANTS = (
        "normalization.intensities={t1c={mean=90.0,std=40.0,clip=300.0},t1n={mean=90.0,std=40.0,clip=300.0},"
        "t2f={mean=90.0,std=40.0,clip=300.0},t2w={mean=80.0,std=30.0,clip=290.0}}"
    )

    @pytest.mark.usefixtures("no_onnx")
    def test_from_recipe_to_image(self, weights, training_data, subject, tmp_path):
        paths = TrainingPaths(training_data, tmp_path / "run", tmp_path / "cache")
        recipe = small(*UNET, "normalization.scheme='dataset'", self.CONSTANTS, "output.contrast=0", "data.held_out=1",
                       "schedule.validate_every=1", recipe="smoke")  # fmt: skip
        train(recipe, paths)
        (one, *_) = build_cache(paths.data, paths.cache, recipe.normalization.build())
        assert one.intensities["t2w"] == Intensity(80.0, 30.0, 290.0)
        entry = export_run(paths.run, weights, "set", data=paths.data, cache=paths.cache, force=True)
        assert entry.spec.normalization == recipe.normalization.build()
        assert "intensity" not in entry.files
        model = Synthesizer("set", weights=weights, device="cpu", precision="fp32").model
        prepared = prepare({m: load_volume(f) for m, f in subject.items()}, model)
        assert prepared.measured["t2w"] == Intensity(80.0, 30.0, 290.0)
        assert model.intensity_of("t2f", prepared.measured) == Intensity(90.0, 40.0, 300.0)

    def test_models_of_another_scale_neither_start_nor_teach_it(self, weights, training_data, tmp_path):
        paths = TrainingPaths(training_data, tmp_path / "run", tmp_path / "cache")
        changes = [*UNET, "normalization.scheme='dataset'", self.CONSTANTS, "output.contrast=0"]
        with pytest.raises(UsageError, match=r"normalization\.scheme = 'volume'"):
            train(small(*changes, recipe="smoke"), paths, start=entry_of(weights))
        teacher = save_segmenter2d(tmp_path / "w", "seg", (8, 8, 8, 8), Segmenter2d((8, 8, 8, 8)).state_dict(),
                                   NORMALIZATION, SliceData().canvas)  # fmt: skip
        with pytest.raises(UsageError, match="'seg' learned another scale of intensities"):
            train(small(*changes, "losses.tversky=1", recipe="smoke"), paths, segmenter=teacher)

    def test_the_published_constants_hold_unless_own_are_given(self):
        assert (
            small("normalization.scheme='dataset'", "output.contrast=0").normalization.build().intensities
            == BRASYN25_INTENSITIES
        )


@pytest.mark.usefixtures("no_onnx")
class TestStart:
    """The weights that a run goes on from."""

    def test_a_run_that_goes_on_names_its_start(self, paths):
        with pytest.raises(UsageError, match=r"goes on from a trained model, .*; name it with --start\."):
            train(load_recipe("r6", ["losses.tversky=0"]), paths, device="cpu")

    def test_float16_is_for_gpus(self, paths):
        with pytest.raises(UsageError, match="processors do not compute in float16"):
            train(small(*UNET, "schedule.precision='fp16'", recipe="smoke"), paths, device="cpu")

    @pytest.mark.parametrize("key,value", [("gate", "released"), ("activation", "silu")])
    def test_weights_that_would_mean_something_else_are_refused(self, weights, key, value):
        """They would fit: neither is a tensor."""
        task = SynthesisTask(small(*HYBRID, f"network.{key}={value!r}", recipe="smoke"), torch.device("cpu"))
        with pytest.raises(UsageError, match=f"go on so with --set network.{key}="):
            task.load_initial_weights(entry_of(weights, "hybrid"))

    def test_weights_of_another_scale_are_refused(self, weights, caplog):
        changes = [*HYBRID, "normalization.scheme='range'", "output.contrast=0"]
        task = SynthesisTask(small(*changes, recipe="smoke"), torch.device("cpu"))
        with pytest.raises(UsageError, match=r"go on so with --set normalization\.scheme=volume"):
            task.load_initial_weights(entry_of(weights, "hybrid"))
        other = SynthesisTask(small(*HYBRID, "normalization.percentile=99.0", recipe="smoke"), torch.device("cpu"))
        other.load_initial_weights(entry_of(weights, "hybrid"))
        assert "other constants of normalization" in caplog.text

    def test_weights_of_the_same_function_are_taken(self, weights):
        task = SynthesisTask(small(*HYBRID, recipe="smoke"), torch.device("cpu"))
        task.load_initial_weights(entry_of(weights, "hybrid"))
        wanted = torch_state(weights, "hybrid")
        assert all(torch.equal(v, wanted[k].float()) for k, v in task.generator.state_dict().items())


class TestTumourTypes:
    def _choose(self, subjects, *types):
        return SynthesisTask.choose(small(f"data.tumour_types={list(types)}", recipe="smoke"), subjects)

    def test_names_decide(self, training_data, training_cache, caplog):
        first, second, *others = build_cache(training_data, training_cache)
        subjects = [replace(first, tumour_type="GLI"), replace(second, tumour_type="MET"),
                    *(replace(s, tumour_type="unknown") for s in others)]  # fmt: skip
        assert self._choose(subjects) == subjects
        assert self._choose(subjects, "GLI", "MET") == subjects[:2]
        with caplog.at_level("INFO"):
            assert self._choose(subjects, "GLI") == subjects[:1]
        assert second.name in caplog.text

    def test_nobody_of_a_type_is_an_error(self, training_data, training_cache):
        subjects = [replace(s, tumour_type="MEN") for s in build_cache(training_data, training_cache)]
        with pytest.raises(UsageError, match=r"GLI \(BraTS-GLI-00001-000\); --set 'data.tumour_types=\[\]' takes"):
            self._choose(subjects, "GLI")

    def test_a_type_that_does_not_exist(self):
        with pytest.raises(UsageError, match=r"data\.tumour_types must be some of GLI, MET"):
            small("data.tumour_types=['GBM']", recipe="smoke")


@pytest.mark.usefixtures("no_onnx")
def test_a_head_that_the_recipe_does_not_ask_for_is_left_off(weights, paths):
    train(small(), paths, start=entry_of(weights))
    export_run(paths.run, weights, "sure", data=paths.data, cache=paths.cache, contrast=0.0, force=True)
    onward = replace(paths, run=paths.run.parent / "onward")
    train(small(*UNET, recipe="smoke"), onward, start=entry_of(weights, "sure"))
    export_run(onward.run, weights, "plain", data=paths.data, cache=paths.cache, contrast=0.0, force=True)
    assert not entry_of(weights, "plain").spec.has_confidence


@pytest.mark.usefixtures("no_onnx")
def test_the_command_trains_a_head_and_exports_it(weights, paths, tmp_path, capsys):
    changes = [text for change in SMALL for text in ("--set", change)]
    data = ["--data", str(paths.data), "--cache", str(paths.cache), "--weights", str(weights)]
    assert main(["train", "confidence", *data, "--run", str(paths.run), "--start", "unet", *changes]) == 0
    export = ["export", str(paths.run), *data, "--model", "c", "--force"]
    assert main([*export, "--fusion", "confidence", "--no-flip-average"]) == 0
    spec = entry_of(weights, "c").spec
    assert (spec.fusion, spec.flip_average) == ("confidence", False)
    assert main(export) == 0
    spec = entry_of(weights, "c").spec
    assert (spec.fusion, spec.flip_average) == ("mean", True)
    capsys.readouterr()
    assert main(["train", "confidence", *data, "--run", str(tmp_path / "no"), *changes]) == 2
    assert "name it with --start" in capsys.readouterr().err


def torch_state(weights, name):
    from safetensors.torch import load_file

    return load_file(weights / f"{name}.safetensors")
