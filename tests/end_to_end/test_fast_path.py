"""What makes a run fast must not change what it makes: each shortcut beside the plain way, with a trained network."""

from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor, nn

from app.core.config import WEIGHTS_DIR
from app.core.constants import MODALITIES, VIEWS
from app.core.types import VolumeArray
from app.inference.backends import TorchBackend
from app.inference.device import Runtime
from app.inference.prepared import Prepared
from app.inference.slicewise.slice_predictor import SlicePredictor
from app.inference.slicewise.view_fusion import FusionOptions, TtaPass
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import measure
from app.preprocessing.slices import Canvas, Window, place_window
from app.registry.checkpoints import load_generator
from app.registry.manifest import read_manifest

TARGET = "t2f"
PRESENT = tuple(m for m in MODALITIES if m != TARGET)
#: As small as the phantom allows; the network's own is for an adult's head.
SMALL = Canvas(dict.fromkeys(VIEWS, (64, 64)))


class _AllEncoders(nn.Module):
    """The plain way: the missing sequence's encoder runs too and is masked."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor, members: tuple[int, ...]) -> Tensor:
        made: Tensor = self.network(*inputs)
        return made


@pytest.fixture(scope="module")
def make(phantom):
    """The target in model space, by the shortcuts that are asked for."""
    entry = read_manifest(WEIGHTS_DIR).entry("compact")
    arrays = {m: phantom.volumes[m].astype(np.float32) for m in PRESENT}
    brain = vote_foreground(arrays)
    measured = {m: measure(a, m, entry.spec.normalization) for m, a in arrays.items()}
    prepared = Prepared(arrays, brain, measured, {}, -1.0)

    def run(
        precision: str = "fp32",
        batch: int = 1,
        leave_out_encoder: bool = True,
        skip_empty: bool = True,
        canvas: Canvas = SMALL,
    ) -> VolumeArray:
        network = load_generator(entry)
        runtime = Runtime("torch", "cpu", precision, batch, "test")  # type: ignore[arg-type]
        backend = TorchBackend(network if leave_out_encoder else _AllEncoders(network), runtime)  # type: ignore[arg-type]
        windows = [place_window(brain, v, canvas) for v in entry.spec.views]
        if not skip_empty:
            extents = {"axial": 2, "sagittal": 0, "coronal": 1}
            windows = [Window(w.view, w.start, w.size, tuple(range(brain.shape[extents[w.view]]))) for w in windows]
        predictor = SlicePredictor(backend, batch)
        return predictor.predict(prepared, TARGET, [TtaPass(tuple(windows))], FusionOptions()).volume[brain]

    return run


def _distance(made: VolumeArray, plain: VolumeArray) -> float:
    """Root mean square difference, as a share of the plain result's spread."""
    return float(np.sqrt(np.mean((made - plain) ** 2)) / plain.std())


@pytest.fixture(scope="module")
def plain(make):
    return make(leave_out_encoder=False, skip_empty=False)


def test_leaving_out_empty_slices_changes_no_bit(make, plain):
    np.testing.assert_array_equal(make(leave_out_encoder=False), plain)


def test_leaving_out_the_missing_encoder_changes_rounding_only(make, plain):
    assert _distance(make(), plain) < 1e-3


@pytest.mark.parametrize("batch", [3, 8])
def test_batches_change_rounding_only(make, plain, batch):
    # Other batches and threads, other convolution algorithms.
    assert _distance(make(batch=batch), plain) < 1e-3


def test_everything_at_once_in_bf16_stays_within_a_hundredth_of_the_spread(make):
    # On the network's own canvas: bfloat16 is coarser where there is hardly any background.
    own = read_manifest(WEIGHTS_DIR).entry("compact").spec.canvas
    plain = make(batch=8, leave_out_encoder=False, canvas=own)
    assert _distance(make("bf16", batch=8, canvas=own), plain) < 1e-2
