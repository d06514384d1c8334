"""Networks as files: from a manifest entry's safetensors to torch, and back; nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.core.constants import View
from app.core.errors import WeightsError
from app.preprocessing.normalization import Normalization
from app.preprocessing.slices import Canvas
from app.registry.manifest import MANIFEST, Entry, Kind, write_entry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from app.networks.enhancer import Enhancer, EnhancerConfig
    from app.networks.hf_gan import HfGan, HfGanConfig
    from app.networks.refiner import Refiner, RefinerConfig
    from app.networks.unet import Segmenter2d, UNetConfig, UNetGenerator
    from app.networks.unet3d import Segmenter3d

import json

from app.networks.voxelwise_regression import VoxelwiseRegression
from app.preprocessing.target_intensity import IntensityPredictor


def load_generator(entry: Entry) -> HfGan | UNetGenerator:
    """The network of an entry: float32, on the CPU, in eval mode, without gradients.

    Raises:
        WeightsError: the file is missing, changed, or does not fit its architecture.
    """
    import torch

    from app.networks import new_generator

    _require_kind(entry, "generator")
    config = architecture_of(entry)
    with torch.device("meta"):
        network = new_generator(config)
    _load_state(network, entry)
    return network


def load_segmenter2d(entry: Entry) -> Segmenter2d:
    """The segmenter of an entry: float32, on the CPU, in eval mode, without gradients.

    Raises:
        WeightsError: as `load_generator`, or the entry is of another kind.
    """
    import torch

    from app.networks.unet import Segmenter2d

    _require_kind(entry, "segmenter")
    with torch.device("meta"):
        network = Segmenter2d(tuple(entry.details["architecture"]["widths"]))
    _load_state(network, entry)
    return network


def load_segmenter3d(entry: Entry) -> Segmenter3d:
    """The 3D segmenter of an entry: float32, on the CPU, in eval mode, without gradients.

    Raises:
        WeightsError: as `load_generator`, or the entry is of another kind.
    """
    import torch

    from app.networks.unet3d import Segmenter3d

    _require_kind(entry, "judge")
    with torch.device("meta"):
        network = Segmenter3d(tuple(entry.details["architecture"]["widths"]))
    _load_state(network, entry)
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[no-any-return,call-overload]


def load_refiner(entry: Entry) -> Refiner | Enhancer:
    """The 3D refiner, or enhancer, of an entry: float32, on the CPU, in eval mode, without gradients.

    Raises:
        WeightsError: as `load_generator`, or the entry is of another kind.
    """
    import torch

    from app.networks.enhancer import Enhancer, EnhancerConfig
    from app.networks.refiner import Refiner, RefinerConfig

    _require_kind(entry, "refiner")
    form = entry.details["architecture"]
    try:
        with torch.device("meta"):
            network = (
                Enhancer(EnhancerConfig.from_json(form))
                if form.get("network") == "enhancer"
                else Refiner(RefinerConfig.from_json(form))
            )
    except (KeyError, TypeError) as error:
        raise WeightsError(f"model {entry.name!r} has an unknown architecture ({error}); update Tetrad.") from None
    _load_state(network, entry)
    return network


def _require_kind(entry: Entry, kind: Kind) -> None:
    if entry.kind != kind:
        raise WeightsError(f"model {entry.name!r} in {entry.folder} is a {entry.kind}, not a {kind}; name another.")


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


def architecture_of(entry: Entry) -> HfGanConfig | UNetConfig:
    """The generator's shape as the manifest states it.

    Raises:
        WeightsError: it is not one that this version knows.
    """
    from app.networks import config_from_json

    try:
        return config_from_json(entry.details["architecture"])
    except (KeyError, TypeError) as error:
        raise WeightsError(f"model {entry.name!r} has an unknown architecture ({error}); update Tetrad.") from None


def save_generator(
    folder: Path,
    name: str,
    config: HfGanConfig | UNetConfig,
    state: Mapping[str, Tensor],
    normalization: Normalization,
    canvas: Canvas,
    views: tuple[View, ...],
    *,
    intensity: bytes | None = None,
    onnx: bytes | None = None,
    details: Mapping[str, Any] | None = None,
    make_default: bool = False,
) -> Entry:
    """Writes a generator as safetensors with its manifest entry.

    Args:
        intensity: JSON of the intensity predictor; needed by the `volume` scheme.
        onnx: the same network as `app.registry.onnx_export.to_onnx` gives it.

    Raises:
        WeightsError: the folder cannot be made.
        OutputError: it cannot be written to; it stays as it was.
    """
    if normalization.background is None or config.background != normalization.background:
        config = replace(config, background=-1.0 if normalization.background is None else normalization.background)
    files: dict[str, bytes | Path] = {"torch": _encoded(state)}
    if intensity is not None:
        files["intensity"] = intensity
    if onnx is not None:
        files["onnx"] = onnx
    form = {
        "architecture": config.to_json(),
        "canvas": canvas.to_json(),
        "views": list(views),
        **(details or {}),
    }
    return write_entry(folder, name, "generator", files, normalization, form, make_default=make_default)


def save_segmenter2d(
    folder: Path,
    name: str,
    widths: tuple[int, ...],
    state: Mapping[str, Tensor],
    normalization: Normalization,
    canvas: Canvas,
    details: Mapping[str, Any] | None = None,
) -> Entry:
    """Writes a segmenter as safetensors with its manifest entry.

    Raises:
        WeightsError: the folder cannot be made.
        OutputError: it cannot be written to; it stays as it was.
    """
    form = {"architecture": {"widths": list(widths)}, "canvas": canvas.to_json(), **(details or {})}
    return write_entry(folder, name, "segmenter", {"torch": _encoded(state)}, normalization, form)


def save_segmenter3d(
    folder: Path,
    name: str,
    widths: tuple[int, ...],
    state: Mapping[str, Tensor],
    normalization: Normalization,
    window: tuple[int, int, int],
    details: Mapping[str, Any] | None = None,
) -> Entry:
    """Writes a 3D segmenter as safetensors with its manifest entry.

    Args:
        window: sides of the patches that it was trained on and sees at once.

    Raises:
        WeightsError: the folder cannot be made.
        OutputError: it cannot be written to; it stays as it was.
    """
    form = {"architecture": {"widths": list(widths)}, "window": list(window), **(details or {})}
    return write_entry(folder, name, "judge", {"torch": _encoded(state)}, normalization, form)


def save_refiner(
    folder: Path,
    name: str,
    config: RefinerConfig | EnhancerConfig,
    state: Mapping[str, Tensor],
    normalization: Normalization,
    window: tuple[int, int, int],
    overlap: float,
    details: Mapping[str, Any] | None = None,
) -> Entry:
    """Writes a refiner, or an enhancer, as safetensors with its manifest entry.

    Args:
        window: sides of what it sees at once, in voxels.
        overlap: share of a window that the next one covers again.

    Raises:
        WeightsError: the folder cannot be made.
        OutputError: it cannot be written to; it stays as it was.
    """
    form = {"architecture": config.to_json(), "window": list(window), "overlap": overlap, **(details or {})}
    return write_entry(folder, name, "refiner", {"torch": _encoded(state)}, normalization, form)


def _encoded(state: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save({k: v.contiguous() for k, v in state.items()})


def load_regression(entry: Entry) -> VoxelwiseRegression:
    """The voxel-wise regression of an entry.

    Raises:
        WeightsError: the file is missing, changed or of another kind.
    """
    if entry.kind != "regression":
        raise WeightsError(f"model {entry.name!r} in {entry.folder} is no regression.")
    return VoxelwiseRegression.from_json(json.loads(entry.path_of("coefficients").read_text(encoding="utf-8")))


def load_intensity(entry: Entry) -> IntensityPredictor | None:
    """The predictor of the target's intensities; None for the `dataset` scheme, which needs none.

    Raises:
        WeightsError: the file is missing or changed.
    """
    if entry.normalization.scheme == "dataset":
        return None
    return IntensityPredictor.from_json(json.loads(entry.path_of("intensity").read_text(encoding="utf-8")))
