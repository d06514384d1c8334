"""Opens models: from manifest entries to what the pipeline runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.core.config import BackendName, FusionName, Precision
from app.core.constants import MODALITIES
from app.core.errors import UsageError, WeightsError
from app.inference.backends import DeviceBackend, open_backend
from app.inference.device import Machine, Runtime, choose_device, choose_runtime
from app.inference.pipeline import Model
from app.inference.refinement import VolumeRefiner, open_refiner
from app.inference.slice_runner import SliceRunner
from app.inference.view_fusion import FusionOptions
from app.registry.checkpoints import load_intensity, load_regression
from app.registry.manifest import Entry, Manifest, spec_as
from app.registry.spec import GeneratorSpec, RefinerSpec, RegressionSpec, Segmenter2dSpec, Segmenter3dSpec

if TYPE_CHECKING:
    from app.inference.slice_predictor import ResidentRunner


def choose_fusion(entry: Entry, fusion: FusionName | None, flip: bool | None, with_error: bool) -> FusionOptions:
    """How a model's views are joined: as asked, else as its manifest entry says, else by their mean, unmirrored.

    Raises:
        UsageError: the model has no views, or no head for confidence where one is needed.
        WeightsError: the manifest names a way that is not known here.
    """
    spec = entry.spec
    if not isinstance(spec, GeneratorSpec):
        if fusion is not None or flip or with_error:
            raise UsageError(f"model {entry.name!r} is no network and has no views to join or to be sure of; "
                             "leave out the fusion, the flip average and the confidence.")  # fmt: skip
        return FusionOptions()
    joining = FusionOptions(fusion or spec.fusion, spec.flip_average if flip is None else flip, with_error)
    if joining.needs_error and not spec.has_confidence:
        raise UsageError(
            f"model {entry.name!r} does not say how sure it is; name one that was trained with a confidence head "
            "(`train confidence --start ...`), or leave out --confidence-dir and --fusion confidence"
            + ("." if set(spec.targets) == set(MODALITIES) else "; --no-specialists does without this model.")
        )
    return joining


def fusion_of(entry: Entry, joining: FusionOptions) -> str:
    """What a refiner is taught on, beside the weights: the views and how they are joined."""
    return "-".join([*spec_as(entry, GeneratorSpec).views, joining.name])


def open_fallback(manifest: Manifest) -> Model:
    """The model that needs no network.

    Raises:
        WeightsError: the weights folder has none.
    """
    if manifest.fallback is None:
        raise WeightsError(f"{manifest.folder} has no fallback model; add the regression to it.")
    return open_model(manifest.entry(manifest.fallback), "cpu", "auto", "auto")


def refiner_of(manifest: Manifest, entry: Entry, refine: bool | None = None) -> Entry | None:
    """The refiner that a model is to be run with; None for none.

    Args:
        refine: whether it is asked for; None leaves it to the model's entry (`refine`, off where it says nothing).

    Raises:
        UsageError: it is asked for, and the model has none.
        WeightsError: the one that the model names is not there, or was trained on other weights of the model.
    """
    spec = entry.spec
    by_default, name = (spec.refine, spec.refiner) if isinstance(spec, GeneratorSpec) else (False, None)
    if not (by_default if refine is None else refine):
        return None
    if name is None:
        raise UsageError(f"model {entry.name!r} has no refiner; leave out --refine, or name a model that has one.")
    refiner = manifest.entries.get(name)
    if refiner is None or not isinstance(refiner.spec, RefinerSpec):
        raise WeightsError(f"{manifest.folder} lacks {name!r}, the refiner of {entry.name!r}; use --no-refine.")
    first = refiner.spec.first_stage
    if first is not None and first.sha256 != entry.sha256:
        raise WeightsError(
            f"the refiner {name!r} was trained on other weights of {entry.name!r}; train it anew, or use --no-refine."
        )
    return refiner


def learned_fusion(refiner: Entry) -> str | None:
    """Give the views and the fusion that a refiner learnt behind; None where it was not noted."""
    first = spec_as(refiner, RefinerSpec).first_stage
    return None if first is None else first.fusion


def open_model(
    entry: Entry,
    device: str,
    backend: BackendName,
    precision: Precision,
    batch_size: int | None = None,
    cuda_graphs: bool = False,
    refiner: Entry | None = None,
) -> Model:
    """Load a model with its refiner for a device.

    Raises:
        WeightsError: the weights are missing or damaged, or the model makes no sequence.
        DeviceError, UsageError: as `app.inference.device.choose_runtime`.
    """
    spec = entry.spec
    if isinstance(spec, Segmenter2dSpec | Segmenter3dSpec):
        raise WeightsError(f"model {entry.name!r} finds tumours and makes no sequence; name another with --model.")
    if isinstance(spec, RefinerSpec):
        raise WeightsError(f"model {entry.name!r} refines what another makes; name that one, and --refine.")
    intensity = load_intensity(entry)
    if isinstance(spec, RegressionSpec):
        if backend == "onnx" or precision not in {"auto", "fp32"} or cuda_graphs:
            raise UsageError(f"model {entry.name!r} is no network; leave out backend, precision and CUDA graphs.")
        if device not in {"auto", "cpu"}:
            # It runs on the processor, but a device that is not there is never passed over in silence.
            choose_device(device, Machine.probe())
        return Model(entry.identity, spec, intensity, regression=load_regression(entry))
    machine = Machine.probe()
    runtime = choose_runtime(entry.files, machine, device, backend, precision, batch_size, cuda_graphs)
    second: VolumeRefiner | None = None
    if refiner is not None:
        # Torch alone runs it, on the first stage's device, whatever backend that one has.
        beside = choose_runtime(refiner.files, machine, runtime.device, "torch", precision)
        second = open_refiner(refiner, entry.spec.normalization, beside)
    runner = runner_of(open_backend(entry, runtime), runtime)
    return Model(entry.identity, spec, intensity, runner=runner, runtime=runtime, refiner=second)


def runner_of(backend: DeviceBackend, runtime: Runtime) -> SliceRunner | ResidentRunner:
    """What takes volumes through a backend: on a GPU they stay there."""
    if runtime.device.startswith("cuda"):
        from app.inference.slice_predictor import ResidentRunner

        return ResidentRunner(backend, runtime.batch_size)
    return SliceRunner(backend, runtime.batch_size)
