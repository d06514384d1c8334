"""Opens models: from manifest entries to what the pipeline runs."""

from __future__ import annotations

import logging
from dataclasses import replace

from app.core.config import FusionName, ModelOptions, RuntimeOptions
from app.core.constants import MODALITIES
from app.core.errors import UsageError, WeightsError
from app.inference.backends import open_backend
from app.inference.device import Machine, choose_device, choose_runtime
from app.inference.pipeline import Model
from app.inference.refinement import VolumeRefiner, open_refiner
from app.inference.slice_predictor import SlicePredictor
from app.inference.view_fusion import FusionOptions
from app.registry.checkpoints import load_intensity, load_regression
from app.registry.manifest import Entry, Manifest, spec_as
from app.registry.spec import GeneratorSpec, RefinerSpec, RegressionSpec, Segmenter2dSpec, Segmenter3dSpec

log = logging.getLogger(__name__)


def choose_fusion(entry: Entry, fusion: FusionName | None, flip: bool | None, with_error: bool) -> FusionOptions:
    """Choose how a model's views are fused: as asked, else as its manifest entry says, else by their mean, unmirrored.

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
    options = FusionOptions(fusion or spec.fusion, spec.flip_average if flip is None else flip, with_error)
    if options.needs_error and not spec.has_confidence:
        raise UsageError(
            f"model {entry.name!r} does not say how sure it is; name one that was trained with a confidence head "
            "(`train confidence --start ...`), or leave out --confidence-dir and --fusion confidence"
            + ("." if set(spec.targets) == set(MODALITIES) else "; --no-specialists does without this model.")
        )
    return options


def fusion_of(entry: Entry, options: FusionOptions) -> str:
    """Name the views and their fusion: a refiner learns on those as much as on the weights."""
    return "-".join([*spec_as(entry, GeneratorSpec).views, options.name])


def open_fallback(manifest: Manifest) -> Model:
    """The model that needs no network.

    Raises:
        WeightsError: the weights folder has none.
    """
    if manifest.fallback is None:
        raise WeightsError(f"{manifest.folder} has no fallback model; add the regression to it.")
    return open_entry(manifest.entry(manifest.fallback), ModelOptions(), RuntimeOptions(device="cpu"))


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


def open_model(manifest: Manifest, options: ModelOptions, runtime: RuntimeOptions) -> Model:
    """Open a model of a manifest, with its refiner and its specialists.

    Raises:
        WeightsError: the weights are missing or do not match their checksum.
        DeviceError: the device is not there.
        UsageError: a combination that does not exist.
    """
    entry = manifest.entry(options.model)
    others = manifest.specialists_of(entry) if options.specialists else {}
    # The options ask for this model's refiner. A specialist is refined where its own entry says so.
    own = replace(options, refine=None) if options.refine else options
    model = open_entry(entry, options, runtime, refiner_of(manifest, entry, options.refine))
    if model.refiner is not None:
        _warn_of_other_fusion(model.refiner, fusion_of(entry, model.fusion))
    # One network may make several sequences, and is loaded once.
    specialists = {
        one.name: open_entry(one, own, runtime, refiner_of(manifest, one, own.refine)) for one in others.values()
    }
    return replace(model, specialists={target: specialists[one.name] for target, one in others.items()})


def _warn_of_other_fusion(refiner: VolumeRefiner, fusion: str) -> None:
    """Warn where a refiner learned on views that were fused in another way."""
    first = refiner.spec.first_stage
    if first is not None and first.fusion is not None and first.fusion != fusion:
        log.warning("The refiner %s learned on views joined as %r and gets %r now.",
                    refiner.identity.name, first.fusion, fusion)  # fmt: skip


def open_entry(
    entry: Entry, options: ModelOptions, runtime_options: RuntimeOptions, refiner: Entry | None = None
) -> Model:
    """Open one model of a manifest, with a refiner where one is given; without specialists.

    Raises:
        WeightsError, DeviceError, UsageError: as `open_model`.
    """
    spec = entry.spec
    if isinstance(spec, Segmenter2dSpec | Segmenter3dSpec):
        raise WeightsError(f"model {entry.name!r} finds tumours and makes no sequence; name another with --model.")
    if isinstance(spec, RefinerSpec):
        raise WeightsError(f"model {entry.name!r} refines what another makes; name that one, and --refine.")
    fusion = choose_fusion(entry, options.fusion, options.flip_average, options.with_error)
    intensity = load_intensity(entry)
    if isinstance(spec, RegressionSpec):
        if runtime_options.backend == "onnx" or runtime_options.precision not in {"auto", "fp32"}:
            raise UsageError(f"model {entry.name!r} is no network; leave out backend and precision.")
        if runtime_options.device not in {"auto", "cpu"}:
            # It runs on the processor, but a device that is not there is never passed over in silence.
            choose_device(runtime_options.device, Machine.probe())
        return Model(entry.identity, spec, intensity, regression=load_regression(entry))
    machine = Machine.probe()
    runtime = choose_runtime(entry.files, machine, runtime_options)
    second: VolumeRefiner | None = None
    if refiner is not None:
        # Torch alone runs it, on the first stage's device, whatever backend that one has.
        same_device = RuntimeOptions(runtime.device, "torch", runtime_options.precision)
        second = open_refiner(refiner, spec.normalization, choose_runtime(refiner.files, machine, same_device))
    predictor = SlicePredictor(open_backend(entry, runtime), runtime.batch_size)
    return Model(entry.identity, spec, intensity, predictor=predictor, runtime=runtime, refiner=second, fusion=fusion)
