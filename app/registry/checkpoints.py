"""Networks as files: from a manifest entry's safetensors to torch, and back; nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from app.core.errors import WeightsError
from app.networks.architectures import EnhancerConfig
from app.networks.voxelwise_regression import VoxelwiseRegression
from app.preprocessing.target_intensity import IntensityPredictor
from app.registry.lineage import Lineage, TrainingRecord
from app.registry.manifest import MANIFEST, Entry, spec_as, write_entry
from app.registry.spec import (
    GeneratorSpec,
    ModelSpec,
    RefinerSpec,
    RegressionSpec,
    Segmenter2dSpec,
    Segmenter3dSpec,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from app.networks.enhancer import Enhancer
    from app.networks.hf_gan import HfGan
    from app.networks.refiner import Refiner
    from app.networks.unet import Segmenter2d, UNetGenerator
    from app.networks.unet3d import Segmenter3d


def load_generator(entry: Entry) -> HfGan | UNetGenerator:
    """Load a generator: float32, on the CPU, in eval mode, without gradients.

    Raises:
        WeightsError: the model is of another kind, or its file is missing, changed, or does not fit its architecture.
    """
    import torch

    from app.networks import new_generator

    spec = spec_as(entry, GeneratorSpec)
    with torch.device("meta"):
        network = new_generator(spec.architecture)
    _load_state(network, entry)
    return network


def load_segmenter2d(entry: Entry) -> Segmenter2d:
    """Load a 2D segmenter; state and errors as `load_generator`."""
    import torch

    from app.networks.unet import Segmenter2d

    spec = spec_as(entry, Segmenter2dSpec)
    with torch.device("meta"):
        network = Segmenter2d(spec.architecture.widths)
    _load_state(network, entry)
    return network


def load_segmenter3d(entry: Entry) -> Segmenter3d:
    """Load a 3D segmenter; state and errors as `load_generator`."""
    import torch

    from app.networks.unet3d import Segmenter3d

    spec = spec_as(entry, Segmenter3dSpec)
    with torch.device("meta"):
        network = Segmenter3d(spec.architecture.widths)
    _load_state(network, entry)
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[no-any-return,call-overload]


def load_refiner(entry: Entry) -> Refiner | Enhancer:
    """Load a 3D refiner or enhancer; state and errors as `load_generator`."""
    import torch

    from app.networks.enhancer import Enhancer
    from app.networks.refiner import Refiner

    shape = spec_as(entry, RefinerSpec).architecture
    with torch.device("meta"):
        network = Enhancer(shape) if isinstance(shape, EnhancerConfig) else Refiner(shape)
    _load_state(network, entry)
    return network


def load_regression(entry: Entry) -> VoxelwiseRegression:
    """Load the voxel-wise regression.

    Raises:
        WeightsError: the model is of another kind, or its file is missing or changed.
    """
    spec_as(entry, RegressionSpec)
    return VoxelwiseRegression.from_json(json.loads(entry.path_of("coefficients").read_text(encoding="utf-8")))


def load_intensity(entry: Entry) -> IntensityPredictor | None:
    """Load the predictor of the target's intensities; None for the `dataset` scheme, which needs none.

    Raises:
        WeightsError: the file is missing or changed.
    """
    if entry.spec.normalization.scheme == "dataset":
        return None
    return IntensityPredictor.from_json(json.loads(entry.path_of("intensity").read_text(encoding="utf-8")))


def save_network(
    folder: Path,
    name: str,
    spec: ModelSpec,
    state: Mapping[str, Tensor],
    *,
    intensity: bytes | None = None,
    onnx: bytes | None = None,
    training: TrainingRecord | None = None,
    ancestors: Lineage | None = None,
    make_default: bool = False,
) -> Entry:
    """Write a network as safetensors with its manifest entry.

    Args:
        intensity: JSON of the intensity predictor; generators of the `volume` scheme need it.
        onnx: the same network as `app.registry.onnx_export.to_onnx` gives it.
        training, ancestors: as `write_entry`.

    Raises:
        WeightsError: the folder cannot be made.
        OutputError: it cannot be written to; it stays as it was.
    """
    from safetensors.torch import save

    files: dict[str, bytes | Path] = {"torch": save({k: v.contiguous() for k, v in state.items()})}
    if intensity is not None:
        files["intensity"] = intensity
    if onnx is not None:
        files["onnx"] = onnx
    return write_entry(
        folder, name, spec, files, training=training, ancestors=ancestors, make_default=make_default
    )  # fmt: skip


def _load_state(network: nn.Module, entry: Entry) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = entry.path_of("torch")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a safetensors file ({error}); fetch the weights again.") from None
    try:
        network.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(f"{path} does not fit the architecture in {MANIFEST} ({reason}).") from None
    network.requires_grad_(False).eval()
