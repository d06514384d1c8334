from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.batch.case_processor import CaseProcessor, runtime_of
from app.cli import main
from app.core.config import ModelOptions, RunConfig, RuntimeOptions
from app.core.constants import MODALITIES
from app.core.errors import CaseError, ExitCode, WeightsError
from app.data.discovery import inspect
from app.data.loading import load_inputs
from app.inference.device import Runtime
from app.inference.pipeline import predict, prepare, refine
from app.inference.refinement import VolumeRefiner
from app.inference.slice_predictor import SlicePredictor
from app.inference.synthesizer import Synthesizer
from app.networks.architectures import RefinerConfig
from app.networks.refiner import CrossAttention, Refiner, attention_weights
from app.preprocessing.normalization import Normalization
from app.registry.manifest import Entry, change_spec, read_manifest
from tests.networks.small_models import save_refiner

VOLUME = Normalization("volume", background=-1.0)
RUNTIME = Runtime("torch", "cpu", "fp32", 1, "test")
SHAPE = (40, 36, 44)
TARGET = torch.tensor([2])


def network(seed: int = 0, *, trained: bool = True, **config) -> Refiner:
    torch.manual_seed(seed)
    made = Refiner(RefinerConfig((8, 8, 8), **config)).eval()
    if trained:
        torch.nn.init.normal_(made.head.weight, std=0.3)
    return made


def patch(seed: int = 0):
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(1, 1, 16, 12, 8, generator=random), torch.randn(1, 4, 16, 12, 8, generator=random))


class TestAttention:
    @given(st.integers(0, 99))
    def test_its_weights_are_above_zero_and_at_most_one(self, seed):
        random = torch.Generator().manual_seed(seed)
        query, key = (5 * torch.randn(3, 4, generator=random) for _ in range(2))
        weights = attention_weights(query, key)
        assert (weights > 0).all()
        assert (weights <= 1).all()
        assert torch.allclose(weights, torch.exp(-(query - key).abs()))
        assert torch.equal(attention_weights(query, query), torch.ones(3, 4))

    def test_no_voxel_looks_at_another(self):
        torch.manual_seed(0)
        block = CrossAttention(8)
        x, sequence = torch.randn(1, 4, 4, 4, 8), torch.randn(1, 4, 4, 4, 8)
        before = block(x, sequence)
        x[0, 1, 2, 3] += 1
        sequence[0, 3, 0, 0] += 1
        moved = (block(x, sequence) - before).abs().amax(dim=-1)[0] > 1e-6
        assert moved.nonzero().tolist() == [[1, 2, 3], [3, 0, 0]]


class TestNetwork:
    @pytest.mark.parametrize("shared", [False, True])
    def test_untrained_it_changes_nothing(self, shared):
        volume, images = patch()
        made = network(trained=False, shared_encoder=shared)(volume, images, TARGET, (0, 1, 3))
        assert torch.equal(made, volume)

    def test_untrained_it_changes_nothing_in_bfloat16_either(self):
        volume, images = patch()
        made = network(trained=False).bfloat16()(volume, images, TARGET, (0, 1, 3))
        assert made.dtype == torch.float32
        assert torch.equal(made, volume)

    @pytest.mark.parametrize("shared", [False, True])
    def test_an_absent_sequence_changes_nothing_and_a_present_one_does(self, shared):
        volume, images = patch()
        refiner, other = network(shared_encoder=shared), images.clone()
        other[:, 1] += torch.randn(16, 12, 8)
        assert torch.equal(refiner(volume, images, TARGET, (0, 3)), refiner(volume, other, TARGET, (0, 3)))
        assert not torch.allclose(refiner(volume, images, TARGET, (0, 1, 3)), refiner(volume, other, TARGET, (0, 1, 3)))

    def test_the_order_is_the_challenges_however_they_are_listed(self, monkeypatch):
        volume, images = patch()
        refiner, asked = network(), []
        for index, block in enumerate(refiner.attention):
            block.register_forward_hook(lambda *_, index=index: asked.append(index))
        assert torch.equal(refiner(volume, images, TARGET, (3, 0, 1)), refiner(volume, images, TARGET, (0, 1, 3)))
        assert asked == [0, 1, 3, 0, 1, 3]

    def test_the_order_matters(self):
        # The attention is no mean over sequences: what the first has answered is what the next is asked.
        volume, images = patch()
        refiner = network(shared_encoder=True)
        before = refiner(volume, images, TARGET, (0, 1))
        refiner.attention[0], refiner.attention[1] = refiner.attention[1], refiner.attention[0]
        assert not torch.allclose(refiner(volume, images, TARGET, (0, 1)), before)

    def test_it_knows_the_target(self):
        volume, images = patch()
        refiner = network()
        assert not torch.allclose(
            refiner(volume, images, torch.tensor([2]), (0, 1)), refiner(volume, images, torch.tensor([3]), (0, 1))
        )

    def test_a_shared_encoder_is_smaller_and_is_told_what_it_sees(self):
        own, shared = (sum(p.numel() for p in network(shared_encoder=s).answering.parameters()) for s in (False, True))
        assert 3.5 < own / shared < 4
        volume, images = patch()
        images[:, 1] = images[:, 0]
        refiner = network(shared_encoder=True)
        refiner.attention[1] = refiner.attention[0]
        assert not torch.allclose(refiner(volume, images, TARGET, (0,)), refiner(volume, images, TARGET, (1,)))

    def test_its_shape_survives_the_manifest(self):
        config = RefinerConfig((8, 16), shared_encoder=True)
        assert RefinerConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
        assert Refiner(config).factor == 2


def stub(made: Refiner, window=(16, 16, 16), runtime: Runtime = RUNTIME) -> VolumeRefiner:
    entry = Entry("r", "refiner", None, {}, VOLUME, {"window": list(window), "overlap": 0.25})  # type: ignore[arg-type]
    return VolumeRefiner(entry, made, runtime)


@pytest.fixture
def volumes():
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    brain = (grid**2).sum(axis=0) < 0.7
    made, *scores = (np.where(brain, random.normal(size=SHAPE), -1).astype(np.float32) for _ in range(4))
    return made, dict(zip(("t1c", "t1n", "t2w"), scores, strict=True)), brain


class TestVolumeRefiner:
    @settings(max_examples=5, deadline=None)
    @given(st.tuples(*[st.sampled_from([12, 16, 24, 48])] * 3))
    def test_untrained_it_is_the_identity_in_the_brain(self, window):
        random = np.random.default_rng(1)
        brain = np.zeros(SHAPE, bool)
        brain[5:35, 4:30, 6:40] = True
        volume = random.normal(size=SHAPE).astype(np.float32)
        scores = {"t1n": random.normal(size=SHAPE).astype(np.float32)}
        made = stub(network(trained=False), window).refine(volume, scores, "t2f", brain, -1.0)
        np.testing.assert_allclose(made[brain], volume[brain], atol=1e-5)
        assert (made[~brain] == -1).all()
        assert made.dtype == np.float32

    def test_one_window_over_all_is_the_network_itself(self, volumes):
        made, scores, brain = volumes
        refiner = network()
        box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(brain))
        sides = tuple(-(-(s.stop - s.start) // 4) * 4 for s in box)
        result = stub(refiner, sides).refine(made, scores, "t2f", brain, -1.0)
        pads = [((n - (s.stop - s.start)) - (n - (s.stop - s.start)) // 2, (n - (s.stop - s.start)) // 2)
                for n, s in zip(sides, box, strict=True)]  # fmt: skip
        seen = {
            m: torch.from_numpy(np.pad(v[box], pads, constant_values=-1)) for m, v in {"made": made, **scores}.items()
        }
        images = torch.stack([seen.get(m, torch.full(sides, -1.0)) for m in MODALITIES])[None]
        with torch.inference_mode():
            own = refiner(seen["made"][None, None], images, TARGET, (0, 1, 3))[0, 0].numpy()
        crop = tuple(slice(a, n - b) for (a, b), n in zip(pads, sides, strict=True))
        np.testing.assert_allclose(result[box][brain[box]], own[crop][brain[box]], atol=1e-4)
        assert np.abs(result - made)[brain].mean() > 0.01

    def test_what_lies_outside_the_brain_is_not_looked_at(self, volumes):
        made, scores, brain = volumes
        other = np.where(brain, made, 50).astype(np.float32)
        refiner = stub(network())
        assert np.array_equal(
            refiner.refine(made, scores, "t2f", brain, -1.0), refiner.refine(other, scores, "t2f", brain, -1.0)
        )

    def test_a_voxel_that_is_not_finite_stays_alone(self, volumes):
        made, scores, brain = volumes
        made[20, 18, 22] = np.nan
        assert np.isfinite(stub(network()).refine(made, scores, "t2f", brain, -1.0)).all()

    def test_memory_that_runs_out_halves_the_window_for_good(self, volumes, monkeypatch, caplog):
        made, scores, brain = volumes
        refiner = stub(network(), (64, 48, 64))
        run, asked = refiner._network.forward, []

        def greedy(volume, *rest):
            asked.append(tuple(volume.shape[2:]))
            if volume.shape[2] > 32:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return run(volume, *rest)

        monkeypatch.setattr(refiner._network, "forward", greedy)
        result = refiner.refine(made, scores, "t2f", brain, -1.0)
        assert asked[0] == (64, 48, 64)
        assert refiner.window == (32, 32, 32)
        assert "the refiner's windows are now of 32 x 32 x 32" in caplog.text
        assert np.array_equal(result, stub(network(), (32, 32, 32)).refine(made, scores, "t2f", brain, -1.0))

    def test_memory_for_not_even_the_smallest_window(self, volumes, monkeypatch):
        made, scores, brain = volumes
        refiner = stub(network(), (64, 64, 64))

        def never(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(refiner._network, "forward", never)
        with pytest.raises(CaseError, match="--no-refine"):
            refiner.refine(made, scores, "t2f", brain, -1.0)

    def test_another_error_is_not_taken_for_memory(self, volumes, monkeypatch):
        made, scores, brain = volumes
        refiner = stub(network())

        def broken(*_):
            raise RuntimeError("shapes do not match")

        monkeypatch.setattr(refiner._network, "forward", broken)
        with pytest.raises(RuntimeError, match="shapes"):
            refiner.refine(made, scores, "t2f", brain, -1.0)

    def test_bfloat16_is_near(self, volumes):
        made, scores, brain = volumes
        exact = stub(network()).refine(made, scores, "t2f", brain, -1.0)
        rough = stub(network(), runtime=replace(RUNTIME, precision="bf16")).refine(made, scores, "t2f", brain, -1.0)
        assert 0 < np.abs(exact - rough)[brain].mean() < 0.1 * np.abs(exact - made)[brain].mean()


@pytest.fixture
def refined_weights(onnx_weights_dir, tmp_path):
    """The weights of all tests, with a refiner of `tiny` that is not its default."""
    folder = tmp_path / "weights"
    shutil.copytree(onnx_weights_dir, folder)
    made = network()
    save_refiner(folder, "sharp", made.config, made.state_dict(), VOLUME, (32, 32, 32), 0.25, contrast=0.3)
    change_spec(read_manifest(folder).entry("tiny"), refiner="sharp", refine=False)
    return folder


class TestPipeline:
    def test_the_manifest_keeps_everything_else(self, refined_weights, onnx_weights_dir):
        before, after = (read_manifest(f).entry("tiny") for f in (onnx_weights_dir, refined_weights))
        assert after.spec == before.spec.model_copy(update={"refiner": "sharp", "refine": False})
        assert after.files == before.files
        assert read_manifest(refined_weights).default == read_manifest(onnx_weights_dir).default

    @pytest.mark.parametrize("backend", ["torch", "onnx"])
    def test_it_stands_between_the_network_and_the_end(self, refined_weights, subject, backend):
        plain, both = (
            Synthesizer("tiny", weights=refined_weights, device="cpu", backend=backend, precision="fp32", refine=r)
            for r in (False, True)
        )
        assert plain.model.refiner is None
        assert plain.model.contrast == 0
        assert both.model.contrast == 0.3
        case = {m: str(f) for m, f in subject.items()}
        first, second = (np.asarray(s(case).dataobj) for s in (plain, both))
        assert first.shape == second.shape
        assert np.array_equal(first == 0, second == 0)
        assert not np.array_equal(first, second)
        header = both(case).header["descrip"].item().decode()
        assert "tiny+sharp" in header

    def test_who_needs_no_z_scores_has_them_for_the_refiner(self, refined_weights, subject, monkeypatch):
        model = Synthesizer("tiny", weights=refined_weights, device="cpu", precision="fp32", refine=True).model
        _, _, volumes = load_inputs(inspect("sub01", {m: [f] for m, f in subject.items()}), "skip")
        results = []
        for on_gpu in (False, True):
            monkeypatch.setattr(SlicePredictor, "normalizes", on_gpu)
            prepared = prepare(volumes, model)
            assert "normalized" in vars(prepared)
            results.append(refine(predict(prepared, "t2f", model), prepared, "t2f", model).volume)
        np.testing.assert_allclose(results[0], results[1], atol=2e-3)

    def test_the_manifest_decides_where_nobody_asks(self, refined_weights):
        def refiner_of(**asked):
            return Synthesizer("tiny", weights=refined_weights, device="cpu", **asked).model.refiner

        assert refiner_of() is None
        change_spec(read_manifest(refined_weights).entry("tiny"), refine=True)
        assert refiner_of().identity.name == "sharp"
        assert refiner_of(refine=False) is None

    def test_who_has_none_says_so(self, weights_dir, subject, tmp_path, capsys):
        arguments = ["synthesize", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"),
                     "--weights", str(weights_dir), "--device", "cpu", "--refine"]  # fmt: skip
        for model in ("tiny", "regression"):
            assert main([*arguments, "--model", model]) == ExitCode.USAGE
            assert f"model '{model}' has no refiner" in capsys.readouterr().err
        assert not list(tmp_path.glob("out/*"))

    def test_a_refiner_that_is_gone_or_sees_other_scores(self, refined_weights):
        entry = read_manifest(refined_weights).entry("tiny")
        made = network()
        other = Normalization("volume", background=-2.0)
        save_refiner(refined_weights, "other", made.config, made.state_dict(), other, (32, 32, 32), 0.25)
        change_spec(entry, refiner="other")
        with pytest.raises(WeightsError, match="sees other scores"):
            Synthesizer("tiny", weights=refined_weights, device="cpu", refine=True)
        change_spec(entry, refiner="gone")
        with pytest.raises(WeightsError, match=r"lacks 'gone'.*--no-refine"):
            Synthesizer("tiny", weights=refined_weights, device="cpu", refine=True)

    def test_a_refiner_of_other_weights_is_refused(self, refined_weights):
        manifest = read_manifest(refined_weights)
        entry = manifest.entry("tiny")
        change_spec(manifest.entry("sharp"), first_stage={"model": "tiny", "sha256": entry.sha256})
        assert Synthesizer("tiny", weights=refined_weights, device="cpu", refine=True).model.refiner is not None
        change_spec(manifest.entry("sharp"), first_stage={"model": "tiny", "sha256": "f" * 64})
        with pytest.raises(WeightsError, match="other weights of 'tiny'"):
            Synthesizer("tiny", weights=refined_weights, device="cpu", refine=True)

    def test_it_is_no_model_of_its_own(self, refined_weights):
        with pytest.raises(WeightsError, match="refines what another makes"):
            Synthesizer("sharp", weights=refined_weights, device="cpu")

    def test_a_run_records_it(self, refined_weights, subject, tmp_path):
        code = main(["synthesize", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--weights",
                     str(refined_weights), "--model", "tiny", "--refine", "--device", "cpu", "--on-error", "stop",
                     "--report-dir", str(tmp_path / "report")])  # fmt: skip
        assert code == ExitCode.OK
        record = next(json.loads(p.read_text()) for p in (tmp_path / "report").glob("*.json"))
        (output,) = record["subjects"][0]["outputs"]
        assert output["model"] == "tiny+sharp"
        assert output["refiner_sha256"] == read_manifest(refined_weights).entry("sharp").sha256
        model = ModelOptions(refined_weights, "tiny", refine=True)
        config = RunConfig(tmp_path / "in", tmp_path / "out", RuntimeOptions("cpu"), model)
        assert "refined by sharp" in runtime_of(CaseProcessor(config))

    def test_info_names_it(self, refined_weights, capsys):
        assert main(["info", "--weights", str(refined_weights)]) == ExitCode.OK
        shown = capsys.readouterr().out
        assert "refiner sharp (off by default)" in shown
        assert "sharp: refiner" in shown

    def test_a_width_that_does_not_fit_is_named(self, refined_weights):
        path = refined_weights / "manifest.json"
        form = json.loads(path.read_text())
        form["models"]["sharp"]["architecture"]["widths"] = [8, 16, 8]
        path.write_text(json.dumps(form))
        with pytest.raises(WeightsError, match="does not fit the architecture"):
            Synthesizer("tiny", weights=refined_weights, device="cpu", refine=True)
