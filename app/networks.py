"""Networks as files: from a manifest entry's safetensors to torch, and back; nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from app.constants import VIEWS, View
from app.errors import WeightsError
from app.intensity import BRASYN25_INTENSITIES, Normalization
from app.views import Canvas
from app.weights import MANIFEST, Entry, Kind, sha256_of, write_entry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from app.models.enhancer import Enhancer, EnhancerConfig
    from app.models.generator import Generator, GeneratorConfig
    from app.models.refiner import Refiner, RefinerConfig
    from app.models.unet import PlainConfig, PlainGenerator, Segmenter
    from app.models.volumetric import VolumeSegmenter


def load_generator(entry: Entry) -> Generator | PlainGenerator:
    """The network of an entry: float32, on the CPU, in eval mode, without gradients.

    Raises:
        WeightsError: the file is missing, changed, or does not fit its architecture.
    """
    import torch

    from app.models import new_generator

    _require_kind(entry, "generator")
    config = architecture_of(entry)
    with torch.device("meta"):
        network = new_generator(config)
    _load_state(network, entry)
    return network


def load_segmenter(entry: Entry) -> Segmenter:
    """The segmenter of an entry: float32, on the CPU, in eval mode, without gradients.

    Raises:
        WeightsError: as `load_generator`, or the entry is of another kind.
    """
    import torch

    from app.models.unet import Segmenter

    _require_kind(entry, "segmenter")
    with torch.device("meta"):
        network = Segmenter(tuple(entry.details["architecture"]["widths"]))
    _load_state(network, entry)
    return network


def load_judge(entry: Entry) -> VolumeSegmenter:
    """The 3D segmenter of an entry: float32, on the CPU, in eval mode, without gradients.

    Raises:
        WeightsError: as `load_generator`, or the entry is of another kind.
    """
    import torch

    from app.models.volumetric import VolumeSegmenter

    _require_kind(entry, "judge")
    with torch.device("meta"):
        network = VolumeSegmenter(tuple(entry.details["architecture"]["widths"]))
    _load_state(network, entry)
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[no-any-return,call-overload]


def load_refiner(entry: Entry) -> Refiner | Enhancer:
    """The 3D refiner, or enhancer, of an entry: float32, on the CPU, in eval mode, without gradients.

    Raises:
        WeightsError: as `load_generator`, or the entry is of another kind.
    """
    import torch

    from app.models.enhancer import Enhancer, EnhancerConfig
    from app.models.refiner import Refiner, RefinerConfig

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


def architecture_of(entry: Entry) -> GeneratorConfig | PlainConfig:
    """The generator's shape as the manifest states it.

    Raises:
        WeightsError: it is not one that this version knows.
    """
    from app.models import config_from_json

    try:
        return config_from_json(entry.details["architecture"])
    except (KeyError, TypeError) as error:
        raise WeightsError(f"model {entry.name!r} has an unknown architecture ({error}); update Tetrad.") from None


def save_generator(
    folder: Path,
    name: str,
    config: GeneratorConfig | PlainConfig,
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
        onnx: the same network as `app.export.to_onnx` gives it.

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


def save_segmenter(
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


def save_judge(
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


def import_checkpoint(file: Path, kind: Literal["brasyn25"], folder: Path, name: str, views: tuple[View, ...]) -> Entry:
    """Brings a public checkpoint into our format.

    Args:
        file: the released safetensors file.
        views: which views to run it on; without a view code, the one that it was trained on.

    Raises:
        WeightsError: the file is no safetensors file or not of this kind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from app.models.convert import from_brasyn25

    try:
        released = load_file(file)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{file} cannot be read as safetensors ({error}); give the released .safetensors file, not a pickle."
        ) from None
    try:
        config, state = from_brasyn25(released)
    except WeightsError as error:
        raise WeightsError(f"{file} is not a BraSyn 2025 generator: {error}") from None
    normalization = Normalization("dataset", background=-1.0, intensities=BRASYN25_INTENSITIES)
    canvas = Canvas(dict.fromkeys(VIEWS, (240, 240)), centre="volume")
    details = {"origin": {"kind": kind, "file": file.name, "sha256": sha256_of(file)}}
    return save_generator(folder, name, config, state, normalization, canvas, views, details=details)
