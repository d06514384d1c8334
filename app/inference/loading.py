"""Models opened: from a manifest to what the pipeline runs."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

from app.core.config import ModelOptions, RuntimeOptions
from app.core.constants import MODALITIES, Modality
from app.core.errors import UsageError, WeightsError
from app.inference.backends import open_backend
from app.inference.device import Machine, Runtime, choose_device, choose_runtime, without_int8
from app.inference.models import Model, NetworkModel, RegressionModel
from app.inference.refinement import VolumeRefiner, open_refiner
from app.inference.slicewise.slice_predictor import SlicePredictor
from app.inference.slicewise.view_fusion import THINNED_STEP, FusionOptions
from app.registry.checkpoints import check_metadata, check_onnx, load_intensity, load_quality, load_regression
from app.registry.lineage import trained_targets
from app.registry.manifest import Entry, Manifest, spec_as
from app.registry.spec import GeneratorSpec, RefinerSpec, RegressionSpec, Segmenter2dSpec, Segmenter3dSpec

log = logging.getLogger(__name__)

#: What a fusion's name says of slices that are left out.
_STEP = re.compile(r"\+step\d+$")


def open_model(manifest: Manifest, options: ModelOptions, runtime: RuntimeOptions) -> Model:
    """Open a model of a manifest, with its refiner and its specialists.

    Raises:
        WeightsError: the weights are missing or do not match their checksum, or the model makes no sequence.
        DeviceError: the device is not there.
        UsageError: a combination that does not exist.
    """
    entry = manifest.entry(options.model)
    check_not_exchanged(manifest, entry)
    refiner = choose_refiner(manifest, entry, options.refine)
    if isinstance(entry.spec, RegressionSpec):
        return open_regression(entry, entry.spec, options, runtime)
    others = manifest.specialists_of(entry) if options.specialists else {}
    for other in others.values():
        check_not_exchanged(manifest, other)
    model = open_network(entry, refiner, options, runtime)
    if model.refiner is not None:
        _warn_of_other_fusion(model.refiner, fusion_of(entry, model.fusion))
    shared = _refiner_of_specialists(model)
    # The options ask for this model's refiner. Else a specialist is refined where its own entry says so.
    refine = (None if options.refine else options.refine) if shared is None else False
    # One network may make several sequences, and is loaded once.
    specialists = {
        other.name: open_network(other, choose_refiner(manifest, other, refine), options, runtime)
        for other in others.values()
    }
    if shared is not None:
        specialists = {name: replace(one, refiner=shared) for name, one in specialists.items()}
    # A specialist makes one sequence: the network that makes all is tried on the others.
    specialists = {name: replace(one, trial_model=model) for name, one in specialists.items()}
    return replace(model, specialists={target: specialists[other.name] for target, other in others.items()})


def _refiner_of_specialists(model: NetworkModel) -> VolumeRefiner | None:
    """Give the refiner that a model shares with its specialists: one that was trained behind them."""
    refiner = model.refiner
    first = None if refiner is None else refiner.spec.first_stage
    return refiner if first is not None and first.specialists else None


def check_not_exchanged(manifest: Manifest, entry: Entry) -> None:
    """Check that a model's weights are not another model's of its folder, as far as the lineage knows them.

    Weights files of version 0.1.0 do not say whose they are; the trainings that gave them are known by checksum.

    Raises:
        WeightsError: they came from a training of another model, or one for other sequences.
    """
    record = manifest.lineage.trainings.get(entry.sha256)
    if record is None:
        return
    other = manifest.entries.get(record.model)
    if record.model != entry.name and other is not None and other.sha256 != entry.sha256:
        raise WeightsError(
            f"the weights of {entry.name!r} in {manifest.folder} are those that {record.model!r} was trained to; "
            "somebody exchanged them: fetch the weights again."
        )
    targets = trained_targets(record)
    if isinstance(entry.spec, GeneratorSpec) and targets is not None and targets != entry.spec.targets:
        raise WeightsError(
            f"the weights of {entry.name!r} in {manifest.folder} were trained for {', '.join(targets)} and not for "
            f"{', '.join(entry.spec.targets)}; fetch the weights again."
        )


def open_fallback(manifest: Manifest) -> Model:
    """Open the model that needs no network.

    Raises:
        WeightsError: the weights folder has none.
    """
    if manifest.fallback is None:
        raise WeightsError(f"{manifest.folder} has no fallback model; add the regression to it.")
    return open_model(manifest, ModelOptions(model=manifest.fallback), RuntimeOptions(device="cpu"))


def open_regression(
    entry: Entry, spec: RegressionSpec, options: ModelOptions, runtime: RuntimeOptions
) -> RegressionModel:
    """Open the voxel-wise regression.

    Raises:
        UsageError: an option that only a network has.
        DeviceError: the device is not there.
        WeightsError: its files are missing or damaged.
    """
    if options.intensity is not None:
        raise UsageError(f"model {entry.name!r} has no intensity encoding; leave out --intensity, or name another.")
    if options.min_expected_ssim is not None:
        raise UsageError(_tells_nothing(entry))
    if options.fusion is not None or options.flip_average or options.with_error or options.quality != "default":
        raise UsageError(f"model {entry.name!r} is no network and has no views to join or to be sure of; "
                         "leave out the fusion, the flip average, the quality and the confidence.")  # fmt: skip
    if runtime.backend == "onnx" or runtime.precision not in {"auto", "fp32"}:
        raise UsageError(f"model {entry.name!r} is no network; leave out backend and precision.")
    if runtime.device not in {"auto", "cpu"}:
        # It runs on the processor, but a device that is not there is never passed over in silence.
        choose_device(runtime.device, Machine.probe())
    return RegressionModel(entry.identity, spec, load_intensity(entry), load_regression(entry))


def open_network(entry: Entry, refiner: Entry | None, options: ModelOptions, runtime: RuntimeOptions) -> NetworkModel:
    """Open a network that makes sequences, with a refiner where one is given; without specialists.

    Raises:
        WeightsError, DeviceError, UsageError: as `open_model`.
    """
    spec = _generator_spec(entry)
    if options.intensity is not None and spec.intensity_prior is None:
        raise UsageError(f"model {entry.name!r} has no intensity encoding; leave out --intensity, or name another.")
    if "torch" in entry.files:
        # Whichever file is run, it must belong to the model.
        check_metadata(entry)
    fusion = choose_fusion(entry, options)
    machine = Machine.probe()
    chosen = choose_runtime(entry.files, machine, runtime)
    if chosen.backend == "onnx" and "torch" in entry.files:
        check_onnx(entry)
    second = None if refiner is None else _open_second_stage(refiner, spec, chosen, runtime, machine)
    shape = spec.architecture
    predictor = SlicePredictor(open_backend(entry, chosen), chosen.batch_size, shape.neighbours, shape.slices)
    expected_quality = load_quality(entry)
    if options.min_expected_ssim is not None and expected_quality is None:
        raise UsageError(_tells_nothing(entry))
    return NetworkModel(entry.identity, spec, load_intensity(entry), predictor, chosen, fusion, second,
                        intensity_choice=options.intensity or "mean", expected_quality=expected_quality,
                        min_expected_ssim=options.min_expected_ssim)  # fmt: skip


def _tells_nothing(entry: Entry) -> str:
    return (
        f"model {entry.name!r} does not tell what to expect of its images; leave out --min-expected-ssim, or name "
        "another."
    )


def _generator_spec(entry: Entry) -> GeneratorSpec:
    """Return a generator's specification; of other networks, say how they are used."""
    if isinstance(entry.spec, Segmenter2dSpec | Segmenter3dSpec):
        raise WeightsError(f"model {entry.name!r} finds tumours and makes no sequence; name another with --model.")
    if isinstance(entry.spec, RefinerSpec):
        raise WeightsError(f"model {entry.name!r} refines what another makes; name that one, and --refine.")
    return spec_as(entry, GeneratorSpec)


def _open_second_stage(
    refiner: Entry, first: GeneratorSpec, runtime: Runtime, options: RuntimeOptions, machine: Machine
) -> VolumeRefiner:
    """Open a refiner on the first stage's device, by torch whatever the backend."""
    same_device = RuntimeOptions(runtime.device, "torch", without_int8(options.precision))
    return open_refiner(refiner, first.normalization, choose_runtime(refiner.files, machine, same_device))


def choose_fusion(entry: Entry, options: ModelOptions) -> FusionOptions:
    """Choose how a generator's views are fused: as asked, else as its manifest entry says.

    Raises:
        UsageError: the model has no head for confidence where one is needed.
        WeightsError: the model is no generator.
    """
    spec = spec_as(entry, GeneratorSpec)
    fusion = fusion_for(spec, options)
    if fusion.needs_error and not spec.has_confidence:
        raise UsageError(
            f"model {entry.name!r} does not say how sure it is; name one that was trained with a confidence head "
            "(`train confidence --start ...`), or leave out --confidence-dir and --fusion confidence"
            + ("." if set(spec.targets) == set(MODALITIES) else "; --no-specialists does without this model.")
        )
    return fusion


def fusion_for(spec: GeneratorSpec, options: ModelOptions) -> FusionOptions:
    """Tell how the views of a generator are fused: as asked, else as it says itself."""
    own = {"fast": False, "default": spec.flip_average, "best": True}[options.quality]
    flip = own if options.flip_average is None else options.flip_average
    # With the mirrored exam every place has a slice, of the one or the other.
    step = {"fast": THINNED_STEP, "default": THINNED_STEP if flip else 1, "best": 1}[options.quality]
    if spec.architecture.slices > 1:
        # One pass makes several slices: nothing is left out.
        step = 1
    return FusionOptions(options.fusion or spec.fusion, flip, options.with_error, step)


def fusion_of(entry: Entry, fusion: FusionOptions) -> str:
    """Name the views and their fusion, on which a refiner behind them depends."""
    return "-".join([*spec_as(entry, GeneratorSpec).views, fusion.name])


def specialist_hashes(manifest: Manifest, entry: Entry) -> dict[Modality, str]:
    """List the sha256 of each specialist of a model, by the sequence that it makes."""
    return {target: other.sha256 for target, other in manifest.specialists_of(entry).items()}


def choose_refiner(manifest: Manifest, entry: Entry, refine: bool | None = None) -> Entry | None:
    """Choose the refiner that a model is run with; None for none.

    Args:
        refine: whether it is asked for; None leaves it to the model's entry.

    Raises:
        UsageError: it is asked for, and the model has none.
        WeightsError: the named one is not there, or was trained on other weights of the model.
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
    check_not_exchanged(manifest, refiner)
    first = refiner.spec.first_stage
    if first is not None and first.sha256 != entry.sha256:
        raise WeightsError(
            f"the refiner {name!r} was trained on other weights of {entry.name!r}; train it anew, or use --no-refine."
        )
    if first is not None and first.specialists and first.specialists != specialist_hashes(manifest, entry):
        raise WeightsError(
            f"the refiner {name!r} was trained behind other specialists of {entry.name!r}; train it anew, or use "
            "--no-refine."
        )
    return refiner


def _warn_of_other_fusion(refiner: VolumeRefiner, fusion: str) -> None:
    """Warn where a refiner learnt on views that were fused in another way."""
    first = refiner.spec.first_stage
    # Slices that are left out change too little to warn of.
    if first is not None and first.fusion is not None and _STEP.sub("", first.fusion) != _STEP.sub("", fusion):
        log.warning("The refiner %s learned on views joined as %r and gets %r now.",
                    refiner.identity.name, first.fusion, fusion)  # fmt: skip
