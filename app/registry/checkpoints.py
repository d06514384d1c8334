"""Networks as files: from a manifest entry's safetensors to torch, and back; nothing is ever unpickled."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from app.core.constants import MODALITIES
from app.core.errors import WeightsError
from app.core.sequence_subsets import subset_key, subsets
from app.networks.architectures import EnhancerConfig
from app.networks.voxelwise_regression import VoxelwiseRegression, exponents
from app.preprocessing.expected_quality import QualityModel
from app.preprocessing.target_intensity import IntensityPredictor
from app.registry.lineage import Lineage, TrainingRecord
from app.registry.manifest import MANIFEST, Entry, add_file, spec_as, write_entry
from app.registry.plain_files import read_json
from app.registry.spec import (
    CgSamrSpec,
    GeneratorSpec,
    ModelSpec,
    RefinerSpec,
    RegressionSpec,
    Segmenter2dSpec,
    Segmenter3dSpec,
    TissNetSpec,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from app.networks.cgsamr import Simulator
    from app.networks.ds3net.slice_generator import Ds3NetSliceGenerator
    from app.networks.enhancer import Enhancer
    from app.networks.hf_gan import HfGan
    from app.networks.int8 import Range, Ranges
    from app.networks.refiner import Refiner
    from app.networks.tissnet.model import TissNet
    from app.networks.unet import Segmenter2d, UNetGenerator
    from app.networks.unet3d import Segmenter3d

    Network = TypeVar("Network", bound=nn.Module)

#: Tensors of a network by which its ONNX file is known.
_COMPARED: Final = 3

Read = TypeVar("Read")


def load_generator(entry: Entry) -> HfGan | UNetGenerator | Ds3NetSliceGenerator:
    """Load a generator: float32, on the CPU, in eval mode, without gradients.

    Raises:
        WeightsError: the model is of another kind, or its file is missing, changed, or does not fit its architecture.
    """
    from app.networks import new_generator

    spec = spec_as(entry, GeneratorSpec)
    network: HfGan | UNetGenerator | Ds3NetSliceGenerator = _built(entry, lambda: new_generator(spec.architecture))
    _load_state(network, entry)
    return network


def load_segmenter2d(entry: Entry) -> Segmenter2d:
    """Load a 2D segmenter; state and errors as `load_generator`."""
    from app.networks.unet import Segmenter2d

    spec = spec_as(entry, Segmenter2dSpec)
    network = _built(entry, lambda: Segmenter2d(spec.architecture.widths))
    _load_state(network, entry)
    return network


def load_segmenter3d(entry: Entry) -> Segmenter3d:
    """Load a 3D segmenter; state and errors as `load_generator`."""
    import torch

    from app.networks.unet3d import Segmenter3d

    spec = spec_as(entry, Segmenter3dSpec)
    network = _built(entry, lambda: Segmenter3d(spec.architecture.widths))
    _load_state(network, entry)
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[no-any-return,call-overload]


def load_refiner(entry: Entry) -> Refiner | Enhancer:
    """Load a 3D refiner or enhancer; state and errors as `load_generator`."""
    from app.networks.enhancer import Enhancer
    from app.networks.refiner import Refiner

    shape = spec_as(entry, RefinerSpec).architecture
    network: Enhancer | Refiner = _built(
        entry, lambda: Enhancer(shape) if isinstance(shape, EnhancerConfig) else Refiner(shape)
    )
    _load_state(network, entry)
    return network


def load_tissnet(entry: Entry) -> TissNet:
    """Load a TISS-Net; state and errors as `load_generator`."""
    import torch

    from app.networks.tissnet.model import TissNet

    spec = spec_as(entry, TissNetSpec)
    network = _built(entry, lambda: TissNet(spec.architecture))
    _load_state(network, entry)
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[no-any-return,call-overload]


def load_simulator(entry: Entry) -> Simulator:
    """Load a network that makes exams; state and errors as `load_generator`."""
    from app.networks.cgsamr import new_simulator

    spec = spec_as(entry, CgSamrSpec)
    network: Simulator = _built(entry, lambda: new_simulator(spec.architecture))
    _load_state(network, entry)
    return network


def load_regression(entry: Entry) -> VoxelwiseRegression:
    """Load the voxel-wise regression.

    Raises:
        WeightsError: the model is of another kind, or its file is missing, changed or lacks coefficients.
    """
    spec_as(entry, RegressionSpec)
    return _from_json(entry, "coefficients", _read_regression)


def load_intensity(entry: Entry) -> IntensityPredictor | None:
    """Load the predictor of the target's intensities; None for the `dataset` scheme, which needs none.

    Raises:
        WeightsError: the file is missing, changed or lacks coefficients.
    """
    if entry.spec.normalization.scheme == "dataset":
        return None
    return _from_json(entry, "intensity", _read_intensity)


def load_quality(entry: Entry) -> QualityModel | None:
    """Load what is expected of a model's sequences; None where that was not fitted.

    Raises:
        WeightsError: the file is missing, changed or lacks numbers.
    """
    return _from_json(entry, "quality", QualityModel.from_json) if "quality" in entry.files else None


def load_ranges(entry: Entry) -> dict[str, Range]:
    """Load the ranges of a network's tensors, for `app.networks.int8`.

    Raises:
        WeightsError: there is no such file, or it is changed, of other weights, or lacks numbers.
    """
    from app.networks.int8 import Range

    def read(form: Any) -> dict[str, Range]:
        if form["weights"] != entry.sha256:
            raise ValueError("it was measured with other weights")
        ranges = {}
        for name, (low, high) in form["ranges"].items():
            _check_numbers(low, len(high))
            _check_numbers(high, len(low))
            ranges[name] = Range(tuple(map(float, low)), tuple(map(float, high)))
        return ranges

    return _from_json(entry, "int8", read)


def save_ranges(entry: Entry, ranges: Ranges) -> Entry:
    """Add the ranges of a network's tensors to its model.

    Raises:
        WeightsError: the manifest cannot be read.
        OutputError: the folder cannot be written to; it stays as it was.
    """
    # Three digits are far finer than a step, and a line a tensor is short.
    lines = [
        f'"{name}": {json.dumps([[float(f"{bound:.3g}") for bound in bounds] for bounds in own])}'
        for name, own in ranges.items()
    ]
    text = f'{{"weights": "{entry.sha256}", "ranges": {{\n' + ",\n".join(lines) + "\n}}\n"
    return add_file(entry, "int8", text.encode())


def save_network(
    folder: Path,
    name: str,
    spec: ModelSpec,
    state: Mapping[str, Tensor],
    *,
    intensity: bytes | None = None,
    onnx: bytes | None = None,
    atlas: bytes | None = None,
    training: TrainingRecord | None = None,
    ancestors: Lineage | None = None,
    make_default: bool = False,
) -> Entry:
    """Write a network as safetensors with its manifest entry.

    Args:
        intensity: JSON of the intensity predictor; generators of the `volume` scheme need it.
        onnx: the same network as `app.registry.onnx_export.to_onnx` gives it.
        atlas: what a network that makes exams is told of anatomy, as safetensors.
        training, ancestors: as `write_entry`.

    Raises:
        WeightsError: the folder cannot be made.
        OutputError: it cannot be written to; it stays as it was.
    """
    from safetensors.torch import save

    tensors = {k: v.contiguous() for k, v in state.items()}
    files: dict[str, bytes | Path] = {"torch": save(tensors, metadata=_metadata(name, spec))}
    if intensity is not None:
        files["intensity"] = intensity
    if onnx is not None:
        files["onnx"] = onnx
    if atlas is not None:
        files["atlas"] = atlas
    return write_entry(
        folder, name, spec, files, training=training, ancestors=ancestors, make_default=make_default
    )  # fmt: skip


def check_metadata(entry: Entry) -> None:
    """Check that a weights file is that of its model, as far as it says whose it is.

    Files of version 0.1.0 do not; their checksums are known to the lineage (`app.inference.loading`).

    Raises:
        WeightsError: it names another model or other sequences, or is no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    path = entry.path_of("torch")
    try:
        with safe_open(path, "pt") as stream:
            stated = stream.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a safetensors file ({error}); fetch the weights again.") from None
    for key, value in _metadata(entry.name, entry.spec).items():
        if stated.get(key, value) != value:
            raise WeightsError(
                f"{path} says of itself {key} {stated[key]!r}, but {MANIFEST} takes it for {value!r}; "
                "fetch the weights again."
            )


def check_onnx(entry: Entry) -> None:
    """Check that a model's ONNX file holds the weights of its safetensors file, which says whose they are.

    The export writes the large ones as they are, in float32 or, where that is exact, in float16.

    Raises:
        WeightsError: it holds none of them, or a file is missing or changed.
    """
    from safetensors.torch import load_file

    path = entry.path_of("onnx")
    graph = path.read_bytes()
    state = load_file(entry.path_of("torch"))
    largest = sorted(state.values(), key=lambda tensor: tensor.numel())[-_COMPARED:]
    forms = [form.numpy().tobytes() for tensor in largest for form in (tensor.float(), tensor.half())]
    if not any(form in graph for form in forms):
        raise WeightsError(
            f"{path} is not the network of {entry.files['torch'].path}; "
            "run `python -m app export`, or use --backend torch."
        )


def _metadata(name: str, spec: ModelSpec) -> dict[str, str]:
    """What a weights file says of itself."""
    targets = {"tetrad_targets": " ".join(spec.targets)} if isinstance(spec, GeneratorSpec) else {}
    return {"tetrad_model": name, **targets}


def _built(entry: Entry, build: Callable[[], Network]) -> Network:
    """Build a network without memory for its weights."""
    import torch

    try:
        with torch.device("meta"):
            return build()
    except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"model {entry.name!r} in {entry.folder / MANIFEST} has an architecture that cannot be built ({reason}); "
            "fetch the weights again."
        ) from None


def _load_state(network: nn.Module, entry: Entry) -> None:
    from safetensors.torch import load_file

    check_metadata(entry)
    path = entry.folder / entry.files["torch"].path
    state = load_file(path)
    try:
        network.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(f"{path} does not fit the architecture in {MANIFEST} ({reason}).") from None
    network.requires_grad_(False).eval()


def _from_json(entry: Entry, role: str, read: Callable[[Any], Read]) -> Read:
    path = entry.path_of(role)
    try:
        return read(read_json(path, entry.folder))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:100]
        raise WeightsError(f"{path} is damaged ({reason}); fetch the weights again.") from None


def _read_regression(form: Any) -> VoxelwiseRegression:
    """Read coefficients for every set of inputs and every target.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: some are missing or no numbers.
    """
    regression = VoxelwiseRegression.from_json(form)
    for inputs, target in subsets():
        _check_numbers(regression.coefficients[subset_key(inputs, target)], len(exponents(len(inputs))))
    _check_numbers((*regression.input_range, regression.contrast), 3)
    return regression


def _read_intensity(form: Any) -> IntensityPredictor:
    """Read coefficients for every set of inputs and every target; errors as `_read_regression`."""
    predictor = IntensityPredictor.from_json(form)
    for inputs, target in subsets():
        for row in predictor.coefficients[subset_key(inputs, target)]:
            _check_numbers(row, 1 + 2 * len(inputs))
    for target in MODALITIES:
        _check_numbers(predictor.ratio_range[target], 2)
        if predictor.logarithmic and predictor.ratio_range[target][1] <= 0:
            raise ValueError(f"a ratio of {target} that is not above 0")
    return predictor


def _check_numbers(values: Iterable[float], count: int) -> None:
    numbers = [float(v) for v in values]
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{len(numbers)} values where {count} finite ones are needed")
