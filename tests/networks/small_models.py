"""Networks that tests put into folders of weights."""

from __future__ import annotations

import torch

from app.networks.architectures import Segmenter2dConfig, Segmenter3dConfig
from app.networks.hf_gan import HfGan
from app.preprocessing.normalization import Normalization
from app.registry.checkpoints import save_network
from app.registry.manifest import read_manifest
from app.registry.spec import GeneratorSpec, RefinerSpec, Segmenter2dSpec, Segmenter3dSpec

VOLUME = Normalization("volume", background=-1.0)


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
