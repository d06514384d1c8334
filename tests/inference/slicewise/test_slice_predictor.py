"""A 2D network over whole volumes: what comes out is what numpy puts together slice by slice."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from app.core.config import RuntimeOptions
from app.core.constants import MODALITIES, VIEWS
from app.core.errors import CaseError
from app.inference.backends import OnnxBackend, Prediction, TorchBackend
from app.inference.device import Machine, Runtime, choose_runtime
from app.inference.prepared import Prepared
from app.inference.slicewise.slice_predictor import SlicePredictor, by_size, members_of
from app.inference.slicewise.view_fusion import FusionOptions, TtaPass, tta_passes
from app.inference.synthesizer import Synthesizer
from app.networks.architectures import HfGanConfig
from app.networks.hf_gan import HfGan
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import Normalization, measure
from app.preprocessing.slices import Canvas, crop, paste, place_window
from app.registry.checkpoints import load_generator
from app.registry.manifest import read_manifest

SIZES = {"axial": (32, 48), "sagittal": (48, 32), "coronal": (32, 32)}
#: Larger than any group of slices here, so that the batches of both ways are the same.
ONE_BATCH = 1000


class Recorder:
    """A stand-in network: the mean of the present sequences plus the view's index; remembers its batches."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, limit: int = 10**9) -> None:
        self.limit = limit
        self.batches: list[tuple[int, ...]] = []

    def run(self, batch, members, target, views, intensity, *, with_error=False):
        if len(batch) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(tuple(views.tolist()))
        return Prediction((batch[:, list(members)].mean(dim=1) + views[:, None, None].float())[:, None])


def _backend(precision: str = "fp32") -> TorchBackend:
    torch.manual_seed(0)
    network = HfGan(HfGanConfig(width=16))
    return TorchBackend(network, Runtime("torch", "cpu", precision, 16, "test"))  # type: ignore[arg-type]


def _prepared(arrays, background: float | None = -1.0) -> Prepared:
    scheme = Normalization("volume", background=background)
    measured = {m: measure(a, m, scheme) for m, a in arrays.items()}
    return Prepared(arrays, vote_foreground(arrays), measured, {}, background)


def _exam(phantom, present=("t1c", "t1n"), background: float | None = -1.0) -> Prepared:
    return _prepared({m: phantom.volumes[m].astype(np.float32) for m in present}, background)


def _pass(prepared: Prepared, sizes=SIZES) -> TtaPass:
    return TtaPass(tuple(place_window(prepared.foreground, v, Canvas(sizes)) for v in VIEWS))


def _predict(predictor: SlicePredictor, prepared: Prepared, target="t2w", sizes=SIZES):
    """The mean of the views, unmirrored."""
    return predictor.predict(prepared, target, [_pass(prepared, sizes)], FusionOptions()).volume


def _plain(backend, prepared: Prepared, target="t2w", sizes=SIZES):
    """The same in numpy, all slices of one size in one batch."""
    windows = _pass(prepared, sizes).windows
    mean = np.zeros(prepared.foreground.shape, dtype=np.float32)
    members = members_of(prepared.arrays)
    volumes = {}
    for group in by_size(windows):
        stacks = []
        for window in group:
            stack = np.full((len(window.slices), 4, *window.size), prepared.padding, dtype=np.float32)
            for member in members:
                stack[:, member] = crop(prepared.normalized[MODALITIES[member]], window, prepared.padding)
            stacks.append(stack)
        views = torch.tensor([VIEWS.index(w.view) for w in group for _ in w.slices])
        batch = torch.from_numpy(np.concatenate(stacks))
        images = backend.run(batch, members, MODALITIES.index(target), views, None).image[:, 0].numpy()
        parts = np.split(images, np.cumsum([len(w.slices) for w in group])[:-1])
        volumes |= {w.view: paste(p, w, mean.shape, prepared.padding) for w, p in zip(group, parts, strict=True)}
    for window in (w for group in by_size(windows) for w in group):
        mean += np.float32(1 / len(windows)) * volumes[window.view]
    return mean


class TestVolumes:
    @pytest.mark.parametrize(
        "present,target", [(("t1c", "t1n", "t2w"), "t2f"), (("t2w", "t1n"), "t1c"), (("t2f",), "t1n")]
    )
    def test_float32_is_what_numpy_makes(self, phantom, present, target):
        backend, prepared = _backend(), _exam(phantom, present)
        expected = _plain(backend, prepared, target)
        assert expected.std() > 0
        np.testing.assert_array_equal(_predict(SlicePredictor(backend, ONE_BATCH), prepared, target), expected)

    def test_bf16_is_too(self, phantom):
        backend, prepared = _backend("bf16"), _exam(phantom, ("t1c", "t1n", "t2w"))
        expected = _plain(backend, prepared, "t2f")
        volume = _predict(SlicePredictor(backend, ONE_BATCH), prepared, "t2f")
        assert np.abs(volume - expected).max() <= 1e-2 * expected.std()

    def test_a_network_with_neighbours_sees_them(self, phantom):
        """A network that gives back one neighbour's T1n moves the volume by a slice; the padding comes in."""

        class Mover(Recorder):
            def run(self, batch, members, target, views, intensity, *, with_error=False):
                return Prediction(batch[:, [2 * 4 + MODALITIES.index("t1n")]])

        prepared = _exam(phantom)
        window = _pass(prepared).windows[0]
        one = TtaPass((window,))
        made = SlicePredictor(Mover(), 5, neighbours=1).predict(prepared, "t2w", [one], FusionOptions()).volume
        moved = np.full_like(made, prepared.padding)
        moved[..., :-1] = prepared.normalized["t1n"][..., 1:]
        expected = paste(crop(moved, window, prepared.padding), window, made.shape, prepared.padding)
        np.testing.assert_array_equal(made, expected)

    def test_beyond_the_ends_there_is_padding(self, phantom):
        class Mover(Recorder):
            def run(self, batch, members, target, views, intensity, *, with_error=False):
                return Prediction(batch[:, [4 + MODALITIES.index("t1n")]])

        volumes = {m: np.ones((32, 32, 6), np.float32) + i for i, m in enumerate(("t1c", "t1n"))}
        volumes["t1n"][8:20, 8:20] = 5
        prepared = _prepared(volumes)
        one = TtaPass((place_window(prepared.foreground, "axial", Canvas({"axial": (32, 32)})),))
        made = SlicePredictor(Mover(), 4, neighbours=1).predict(prepared, "t2w", [one], FusionOptions()).volume
        assert (made[..., 0] == prepared.padding).all()
        np.testing.assert_array_equal(made[..., 1:], prepared.normalized["t1n"][..., :-1])

    @pytest.mark.parametrize("mirrored", [False, True])
    def test_slices_that_are_left_out_lie_between_their_neighbours(self, phantom, mirrored):
        prepared, canvas = _exam(phantom), Canvas(SIZES)

        def made(step: int) -> np.ndarray:
            one = tta_passes(prepared.foreground, ("axial",), canvas, flip=True, step=step)[mirrored]
            thin.append(one.windows[0].slices)
            return SlicePredictor(_backend(), 1).predict(prepared, "t2w", [one], FusionOptions()).volume

        thin: list[tuple[int, ...]] = []
        whole, third = made(1), made(3)
        for first, second in pairwise(thin[1]):
            np.testing.assert_array_equal(third[..., first], whole[..., first])
            for index in range(first + 1, second):
                share = (index - first) / (second - first)
                between = whole[..., first] * (1 - share) + whole[..., second] * share
                # In the brain they have the detail of the exam, too.
                outside = ~prepared.foreground[..., index]
                np.testing.assert_allclose(third[..., index][outside], between[outside], atol=1e-5)
        assert len(thin[1]) == pytest.approx(len(thin[0]) / 3, abs=2)

    def test_slices_that_are_left_out_have_the_detail_of_the_exam(self, phantom):
        """Of a network that averages what it sees they come out as if it had made them."""
        prepared, canvas = _exam(phantom), Canvas(SIZES)
        passes = [tta_passes(prepared.foreground, VIEWS, canvas, flip=False, step=step) for step in (1, 2)]
        whole, half = (SlicePredictor(Recorder(), 8).predict(prepared, "t2w", p, FusionOptions()) for p in passes)
        brain = prepared.foreground
        away, spread = np.abs(half.volume - whole.volume)[brain], whole.volume[brain].std()
        # At the brain's border a slice between may have no neighbour.
        assert np.median(away) < 0.005 * spread
        assert away.mean() < 0.05 * spread

    @pytest.mark.parametrize("mirrored", [False, True])
    def test_a_pass_may_make_several_slices(self, phantom, mirrored):
        """A network that gives back three slices of the T1n gives back the volume, in a third of the passes."""

        class Copier(Recorder):
            def run(self, batch, members, target, views, intensity, *, with_error=False):
                self.batches.append(tuple(views.tolist()))
                places = [place * 4 + MODALITIES.index("t1n") for place in range(3)]
                return Prediction(batch[:, places])

        prepared, canvas, backend = _exam(phantom), Canvas(SIZES), Copier()
        one = tta_passes(prepared.foreground, ("axial", "coronal"), canvas, flip=True)[mirrored]
        made = (
            SlicePredictor(backend, 5, neighbours=2, slices=3).predict(prepared, "t2w", [one], FusionOptions()).volume
        )
        halves = np.zeros_like(made)
        for window in one.windows:
            stacked = crop(prepared.normalized["t1n"], window, prepared.padding)
            halves += paste(stacked, window, made.shape, prepared.padding) / 2
        np.testing.assert_allclose(made, halves, atol=1e-6)
        passes = sum(len(views) for views in backend.batches)
        assert passes == pytest.approx(sum(len(w.slices) for w in one.windows) / 3, abs=2)

    def test_where_there_is_no_brain_between_there_is_background(self):
        volumes = {m: np.zeros((32, 32, 12), np.float32) for m in ("t1c", "t1n")}
        for volume in volumes.values():
            volume[8:20, 8:20, :3], volume[8:20, 8:20, 9:] = 3, 5
            volume[8, 8] += volume[8, 8] > 0
        prepared = _prepared(volumes)
        passes = tta_passes(prepared.foreground, ("axial",), Canvas({"axial": (32, 32)}), flip=False, step=2)
        volume = SlicePredictor(Recorder(), 16).predict(prepared, "t2w", passes, FusionOptions()).volume
        assert (volume[..., 3:9] == prepared.padding).all()
        assert (volume[10, 10, [0, 1, 2, 9, 10, 11]] != prepared.padding).all()

    @pytest.mark.parametrize("step", [1, 2])
    @pytest.mark.parametrize("mirrored", [False, True])
    def test_through_close_windows_the_brain_is_the_same(self, phantom, step, mirrored):
        """Of a network that looks at each pixel alone; it sees fewer of them."""
        prepared = _exam(phantom)
        sizes = {"axial": (80, 96), "sagittal": (96, 80), "coronal": (80, 80)}
        volumes, pixels = [], []
        for canvas in (Canvas(sizes), Canvas(sizes, close=8)):
            seen: list[int] = []

            class Counter(Recorder):
                def run(self, batch, *arguments, seen=seen, **options):
                    seen.append(batch[:, 0].numel())
                    return super().run(batch, *arguments, **options)

            passes = tta_passes(prepared.foreground, VIEWS, canvas, flip=True, step=step)[int(mirrored) :][:1]
            volumes.append(SlicePredictor(Counter(), 8).predict(prepared, "t2w", passes, FusionOptions()).volume)
            pixels.append(sum(seen))
        brain = prepared.foreground
        np.testing.assert_allclose(volumes[1][brain], volumes[0][brain], atol=1e-6)
        assert pixels[1] < pixels[0]

    def test_windows_that_reach_over_the_edge_and_views_of_one_size(self, phantom):
        backend, prepared, sizes = _backend(), _exam(phantom), dict.fromkeys(VIEWS, (96, 96))
        volume = _predict(SlicePredictor(backend, ONE_BATCH), prepared, sizes=sizes)
        np.testing.assert_array_equal(volume, _plain(backend, prepared, sizes=sizes))

    def test_a_scheme_without_a_background_pads_with_zero(self, phantom):
        backend, prepared = _backend(), _exam(phantom, background=None)
        np.testing.assert_array_equal(_predict(SlicePredictor(backend, ONE_BATCH), prepared), _plain(backend, prepared))

    @pytest.mark.parametrize("sizes,close", [(SIZES, 0), (dict.fromkeys(VIEWS, (80, 96)), 16)])
    def test_a_mirrored_pass_is_a_pass_over_the_mirrored_exam(self, phantom, sizes, close):
        # One voxel less, so that the brain's middle moves by half a voxel against the grid's.
        arrays = {m: phantom.volumes[m][1:].astype(np.float32) for m in ("t1c", "t1n")}
        mirrored = _prepared({m: np.ascontiguousarray(a[::-1]) for m, a in arrays.items()})
        prepared, canvas = _prepared(arrays), Canvas(sizes, close=close)
        predictor, views = SlicePredictor(_backend(), 16), ("axial", "coronal")
        flipped = tta_passes(prepared.foreground, views, canvas, flip=True)[1:]
        plain = tta_passes(mirrored.foreground, views, canvas, flip=False)
        volume = predictor.predict(prepared, "t2w", flipped, FusionOptions()).volume
        expected = predictor.predict(mirrored, "t2w", plain, FusionOptions()).volume
        np.testing.assert_array_equal(volume, expected[::-1])

    def test_the_order_of_the_inputs_does_not_matter(self, phantom):
        predictor = SlicePredictor(_backend(), 16)
        one, other = (_exam(phantom, order) for order in (("t1c", "t1n", "t2w"), ("t2w", "t1c", "t1n")))
        np.testing.assert_array_equal(_predict(predictor, one, "t2f"), _predict(predictor, other, "t2f"))

    def test_one_predictor_takes_subjects_of_other_shapes(self, phantom, weights_dir):
        entry = read_manifest(weights_dir).entry("tiny")
        runtime = choose_runtime(entry.files, Machine(), RuntimeOptions(precision="fp32"))
        predictor = SlicePredictor(TorchBackend(load_generator(entry), runtime), 16)
        for part in (0, 3, 0):
            prepared = _prepared({m: phantom.volumes[m][part:].astype(np.float32) for m in MODALITIES[:3]})
            volume = _predict(predictor, prepared)
            assert volume.shape == prepared.foreground.shape
            assert np.isfinite(volume).all()

    def test_what_was_prepared_is_not_changed(self, phantom):
        prepared = _exam(phantom)
        before = {m: a.copy() for m, a in prepared.normalized.items()}
        _predict(SlicePredictor(_backend(), 16), prepared)
        for modality, array in before.items():
            np.testing.assert_array_equal(prepared.normalized[modality], array)

    def test_onnxruntime_gives_the_same(self, phantom, onnx_weights_dir):
        entry = read_manifest(onnx_weights_dir).entry("tiny")
        backend = OnnxBackend(entry, choose_runtime(entry.files, Machine(), RuntimeOptions(backend="onnx")))
        prepared = _exam(phantom)
        volume = _predict(SlicePredictor(backend, 16), prepared)
        np.testing.assert_allclose(volume, _plain(backend, prepared), atol=1e-5)


class TestBatches:
    @pytest.fixture
    def exam(self):
        random = np.random.default_rng(0)
        brain = np.zeros((40, 44, 36), dtype=bool)
        brain[5:30, 8:40, 4:30] = True
        arrays = {m: np.where(brain, random.uniform(1, 9, brain.shape), 0).astype(np.float32) for m in MODALITIES[:3]}
        return _prepared(arrays)

    SQUARE = dict.fromkeys(VIEWS, (48, 48))

    def test_views_of_one_size_share_batches(self, exam):
        backend = Recorder()
        _predict(SlicePredictor(backend, 16), exam, sizes=self.SQUARE)
        total = sum(len(w.slices) for w in _pass(exam, self.SQUARE).windows)
        assert [len(b) for b in backend.batches] == [16] * (total // 16) + ([total % 16] if total % 16 else [])
        assert any(len(set(b)) > 1 for b in backend.batches)

    def test_views_of_other_sizes_do_not(self, exam):
        backend = Recorder()
        sizes = {"axial": (48, 48), "sagittal": (48, 64), "coronal": (64, 48)}
        _predict(SlicePredictor(backend, 16), exam, sizes=sizes)
        assert all(len(set(b)) == 1 for b in backend.batches)

    def test_empty_slices_are_not_run(self, exam):
        backend = Recorder()
        _predict(SlicePredictor(backend, 4), exam, sizes=self.SQUARE)
        assert sum(len(b) for b in backend.batches) == 25 + 32 + 26 < sum(exam.foreground.shape)

    @pytest.mark.parametrize("batch", [1, 5, 64])
    def test_fused_views_are_the_mean_in_the_right_place(self, exam, batch):
        volume = _predict(SlicePredictor(Recorder(), batch), exam, sizes=self.SQUARE)
        expected = np.mean(list(exam.normalized.values()), axis=0) + np.mean([0, 1, 2])
        np.testing.assert_allclose(volume[exam.foreground], expected[exam.foreground], atol=1e-5)

    def test_the_batch_is_halved_when_memory_runs_out_and_stays_so(self, exam, caplog):
        predictor = SlicePredictor(Recorder(limit=5), 16)
        volume = _predict(predictor, exam, sizes=self.SQUARE)
        assert predictor.batches.size == 4
        assert "batches are now of 4 slices" in caplog.text
        np.testing.assert_array_equal(volume, _predict(SlicePredictor(Recorder(), 16), exam, sizes=self.SQUARE))

    def test_not_even_one_slice(self, exam):
        with pytest.raises(CaseError, match=r"not even one slice.*--device cpu"):
            _predict(SlicePredictor(Recorder(limit=0), 4), exam, sizes=self.SQUARE)


class TestGpu:
    """The way of a GPU, taken on the processor."""

    @pytest.fixture
    def on_gpu(self, monkeypatch):
        monkeypatch.setattr(SlicePredictor, "normalizes", True)

    def test_z_scores_made_on_the_device_are_the_same(self, phantom, on_gpu):
        for background in (-1.0, None):
            prepared = _exam(phantom, ("t2w", "t1c"), background)
            volumes = SlicePredictor(_backend(), 8)._normalize(prepared)
            assert list(volumes) == [0, 3]
            for index, volume in volumes.items():
                np.testing.assert_array_equal(volume.numpy(), prepared.normalized[MODALITIES[index]])

    def test_the_processor_makes_none(self, phantom, on_gpu):
        prepared = _exam(phantom)
        _predict(SlicePredictor(_backend(), 8), prepared)
        assert "normalized" not in vars(prepared)

    def test_batches_filled_up_give_the_same(self, phantom, monkeypatch):
        backend, prepared = _backend(), _exam(phantom)
        expected = _predict(SlicePredictor(backend, 20), prepared)
        monkeypatch.setattr(SlicePredictor, "normalizes", True)
        run, sizes = backend.run, []
        monkeypatch.setattr(backend, "run", lambda b, *rest, **more: sizes.append(len(b)) or run(b, *rest, **more))
        np.testing.assert_allclose(_predict(SlicePredictor(backend, 20), prepared), expected, atol=1e-3)
        assert set(sizes) <= {1, 2, 4, 8, 16, 32}

    @pytest.mark.parametrize("locked", [False, True])
    def test_memory_that_cannot_be_locked_is_done_without(self, phantom, on_gpu, monkeypatch, locked):
        empty = torch.empty

        def stub(*shape, pin_memory=False, **options):
            if pin_memory and not locked:
                raise RuntimeError("cudaHostAlloc: not permitted")
            return empty(*shape, **options)

        monkeypatch.setattr(torch, "empty", stub)
        prepared = _exam(phantom)
        volumes = SlicePredictor(_backend(), 8)._normalize(prepared)
        np.testing.assert_array_equal(volumes[0].numpy(), prepared.normalized["t1c"])

    def test_a_subject_that_does_not_fit_says_what_to_do(self, phantom, on_gpu, monkeypatch):
        predictor = SlicePredictor(_backend(), 16)

        def exhausted(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(predictor, "_upload", exhausted)
        with pytest.raises(CaseError, match="--device cpu"):
            _predict(predictor, _exam(phantom))

    def test_a_processor_copies_no_volume(self, phantom):
        prepared = _exam(phantom)
        (volume, _) = SlicePredictor(_backend(), 8)._load(prepared).values()
        assert volume.data_ptr() == prepared.normalized["t1c"].ctypes.data

    def test_the_whole_way_gives_the_same_image(self, subject, weights_dir, monkeypatch):
        plain = Synthesizer("tiny", weights=weights_dir, device="cpu", precision="fp32", batch_size=16)
        image = plain(subject["t1c"].parent)
        monkeypatch.setattr(SlicePredictor, "normalizes", True)
        synthesizer = Synthesizer("tiny", weights=weights_dir, device="cpu", precision="fp32", batch_size=16)
        # Batches as the processor's: another size of batch is another way to round.
        predictor = synthesizer.model.predictor
        predictor._multiple = 1
        synthesizer.model = replace(synthesizer.model, predictor=predictor)
        again = synthesizer(subject["t1c"].parent)
        np.testing.assert_array_equal(np.asanyarray(again.dataobj), np.asanyarray(image.dataobj))
        assert again.header.binaryblock == image.header.binaryblock
