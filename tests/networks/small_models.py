"""Networks that tests put into folders of weights."""

from __future__ import annotations

import torch

from app.core.constants import MODALITIES, TUMOUR_SEGMENTER, VIEWS
from app.networks import new_generator
from app.networks.architectures import (
    HfGanConfig,
    RefinerConfig,
    Segmenter2dConfig,
    Segmenter3dConfig,
    TissNetConfig,
    UNetConfig,
)
from app.networks.hf_gan import HfGan
from app.networks.refiner import Refiner
from app.networks.tissnet.model import TissNet
from app.networks.unet3d import Segmenter3d
from app.preprocessing.normalization import Normalization
from app.preprocessing.slices import Canvas
from app.registry.checkpoints import save_network
from app.registry.manifest import read_manifest
from app.registry.onnx_export import export_onnx
from app.registry.spec import GeneratorSpec, RefinerSpec, Segmenter2dSpec, Segmenter3dSpec, TissNetSpec

VOLUME = Normalization("volume", background=-1.0)
#: Of unlike sizes, and not as large as the brain, so that windows grow and odd margins occur.
_CANVAS = Canvas({"axial": (48, 48), "sagittal": (48, 32), "coronal": (32, 48)})
_WIDTHS = (8, 16, 16, 16)
#: Generators that expect their own error.
CONFIDENT = {
    "unet": UNetConfig(_WIDTHS, confidence="likelihood"),
    "bounded": UNetConfig(_WIDTHS, confidence="bounded", confidence_scale=0.1),
    "hybrid": HfGanConfig(width=16, confidence="likelihood"),
}


def save_generator(folder, name, config, state, normalization, canvas, views, *, intensity=None, onnx=None,
                   make_default=False, **fields):  # fmt: skip
    spec = GeneratorSpec(architecture=config, normalization=normalization, canvas=canvas, views=views, **fields)
    return save_network(folder, name, spec, state, intensity=intensity, onnx=onnx, make_default=make_default)


def save_refiner(folder, name, config, state, normalization, window, overlap, *, training=None, **fields):
    spec = RefinerSpec(architecture=config, normalization=normalization, window=window, overlap=overlap, **fields)
    return save_network(folder, name, spec, state, training=training)


def save_segmenter2d(folder, name, widths, state, normalization, canvas, *, training=None):
    spec = Segmenter2dSpec(architecture=Segmenter2dConfig(widths), normalization=normalization, canvas=canvas)
    return save_network(folder, name, spec, state, training=training)


def save_segmenter3d(folder, name, widths, state, normalization, window, *, training=None):
    spec = Segmenter3dSpec(architecture=Segmenter3dConfig(widths), normalization=normalization, window=window)
    return save_network(folder, name, spec, state, training=training)


def add_expert(folder, name="expert", makes=("t2f",), normalization=VOLUME):
    """Another untrained network beside `tiny`, which makes some sequences only."""
    tiny = read_manifest(folder).entry("tiny")
    torch.manual_seed(5)
    config = tiny.spec.architecture
    intensity = tiny.path_of("intensity").read_bytes()
    return save_generator(folder, name, config, HfGan(config).state_dict(), normalization, tiny.spec.canvas,
                          tiny.spec.views, intensity=intensity, targets=makes)  # fmt: skip


def scores_of(folder, name):
    """What the lineage of a folder keeps of a model's scores."""
    manifest = read_manifest(folder)
    return manifest.lineage.scores_of(manifest.entry(name).sha256)


def record_of(folder, name):
    """The training of a model, as the lineage of its folder has it."""
    manifest = read_manifest(folder)
    return manifest.lineage.trainings[manifest.entry(name).sha256]


def new_refiner(seed: int = 0, *, trained: bool = True, **config) -> Refiner:
    """A small refiner; untrained ones change nothing."""
    torch.manual_seed(seed)
    refiner = Refiner(RefinerConfig((8, 8, 8), **config)).eval()
    if trained:
        torch.nn.init.normal_(refiner.head.weight, std=0.3)
    return refiner


def write_confident(folder) -> None:
    """Adds the generators of `CONFIDENT`, `unet` with its ONNX, and one without a head, as `plain`."""
    intensity = read_manifest(folder).entry("regression").path_of("intensity").read_bytes()
    for name, config in {**CONFIDENT, "plain": UNetConfig(_WIDTHS)}.items():
        torch.manual_seed(1)
        network = new_generator(config)
        if network.confidence is not None:
            # An untrained head says nearly the same everywhere.
            with torch.no_grad():
                network.confidence[2].weight *= 4
        entry = save_generator(folder, name, config, network.state_dict(), Normalization("volume"), _CANVAS, VIEWS,
                               intensity=intensity)  # fmt: skip
        if name == "unet":
            export_onnx(entry)


#: Window of the segmenters that `write_segmenting` adds.
SEGMENTING_WINDOW = (32, 32, 16)


def save_tissnet(folder, name, targets=MODALITIES, complete=True, seed=0):
    """An untrained TISS-Net of one network, with the regression's brightness."""
    torch.manual_seed(seed)
    sources = tuple(m for m in MODALITIES if complete or len(targets) > 1 or m not in targets)
    config = TissNetConfig((4, 4, 6, 6, 8), len(sources), 3, len(targets) + complete)
    spec = TissNetSpec(architecture=config, normalization=VOLUME, targets=targets, complete=complete, sources=sources,
                       window=SEGMENTING_WINDOW)  # fmt: skip
    intensity = read_manifest(folder).entry("regression").path_of("intensity").read_bytes()
    return save_network(folder, name, spec, TissNet(config).state_dict(), intensity=intensity)


def write_segmenting(folder) -> None:
    """Adds a TISS-Net for every case, as `one`, and two tumour segmenters."""
    save_tissnet(folder, "one")
    for seed, name in enumerate((TUMOUR_SEGMENTER, "other")):
        torch.manual_seed(seed)
        widths = (8, 8)
        save_segmenter3d(folder, name, widths, Segmenter3d(widths).state_dict(), VOLUME, SEGMENTING_WINDOW)
